"""One peer's node: the I/O thread that owns the Context and every socket.

The training thread talks to it through a queue of commands and a queue of events, and never
touches a socket. The node joins membership (who), broadcast (what) and links (how); it knows
nothing of models.

    training thread --commands--> I/O thread --events--> training thread
    ROUTER (one, bound)    receives everything; answers with Welcome, Credit, Error
    DEALER (two per Link)  sends everything else: data on one, control on the other
"""

import contextlib
import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import zmq
import zmq.utils.monitor
from xxhash import xxh3_64_intdigest

from gossamer.transport.assembly import Assembly
from gossamer.transport.broadcast import Broadcast, Gone, Update
from gossamer.transport.errors import BindError, ProtocolError, TransportError
from gossamer.transport.link import (
    STALL_SECONDS,
    Link,
    Session,
    Traffic,
    Transfer,
)
from gossamer.transport.membership import Membership
from gossamer.transport.message import (
    CHUNK_BYTES,
    Buffer,
    Chunk,
    Clock,
    Control,
    Credit,
    Error,
    ErrorCode,
    Graft,
    Hello,
    Kind,
    Member,
    Members,
    Prune,
    StateRequest,
    Status,
    Welcome,
    decode,
)

log = logging.getLogger(__name__)

TICK_SECONDS = 0.05
CLOCK_INTERVAL_SECONDS = 0.2
MAX_BACKLOG = 4
LINGER_MILLISECONDS = 1000
MAX_COMPLAINERS = 256
MAX_DESCRIPTION = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """What a node is told once. Times are seconds."""

    peer: str  # this peer's id, unique in the run
    run: str | None  # None: learn it from the peer that is joined
    bind: str = "tcp://127.0.0.1:0"  # port 0: any free one
    advertise: str | None = None  # what others connect to; None: the bound endpoint
    signature: str = ""  # of the model; peers with another one are refused
    description: str = ""  # of the model, for people
    settings: Mapping[str, str] = field(default_factory=dict)  # told to joiners
    peer_timeout: float = 20.0  # of silence, until a neighbour is dead; other deadlines derive
    max_update_bytes: int = 1 << 32
    max_state_bytes: int = 1 << 36
    log_bytes: int = 1 << 28  # kept for resending
    inbox_bytes: int = 1 << 28  # beyond that no more credit is granted until updates are applied


# -- what the training thread gets


@dataclass(frozen=True, slots=True)
class Welcomed:
    run: str
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Refused:
    text: str


@dataclass(frozen=True, slots=True)
class MemberChanged:
    member: Member


@dataclass(frozen=True, slots=True)
class StateRequested:
    origin: int
    token: int
    have: str = ""


@dataclass(frozen=True, slots=True)
class StateArrived:
    token: int
    payload: bytearray


@dataclass(frozen=True, slots=True)
class Desynchronized:
    """Updates were missed that no log holds any more: the state must be fetched again."""

    origin: int


@dataclass(frozen=True, slots=True)
class Failed:
    error: BaseException


Event = (
    Update
    | Welcomed
    | Refused
    | MemberChanged
    | StateRequested
    | StateArrived
    | Desynchronized
    | Failed
)


class Node:
    """A peer's presence on the network.

    config:  see NodeConfig
    overlay: overlay(ids, settings of the run) -> neighbours of each id: a connected, undirected
             graph, the same on every peer
    Raises BindError when the endpoint cannot be bound, TransportError when the config holds text
    that is too long for a message.
    """

    def __init__(
        self,
        config: NodeConfig,
        overlay: Callable[[Sequence[str], Mapping[str, str]], Mapping[str, set[str]]],
    ) -> None:
        self.config = config
        self.origin = secrets.randbits(62) + 1
        self.traffic = Traffic()
        self.congested = False
        self.drained = False
        self._overlay = overlay
        self._commands: deque[tuple[Any, ...]] = deque()
        self._events: deque[Event] = deque()
        self._events_ready = threading.Condition()
        self._inbox_bytes = 0
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stop = threading.Event()
        self._run_name = config.run
        self._run = _run_hash(config.run)
        self._settings = dict(config.settings)
        self._description = config.description[:MAX_DESCRIPTION]
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 8192)
        self._router, self.endpoint = self._bind()
        own = Member(
            config.peer, self.origin, config.advertise or self.endpoint, 0, 0, Status.JOINING
        )
        self._membership = Membership(own, peer_timeout=config.peer_timeout)
        self._broadcast = Broadcast(
            self.origin,
            send=self._send_update,
            graft=lambda peer, *args: self._control(peer, Graft(*args)),
            prune=lambda peer, origin: self._control(peer, Prune(origin)),
            log_bytes=config.log_bytes,
            max_delay=config.peer_timeout / 4,
        )
        self._assembly = Assembly()
        self._in_run = False
        self._links: dict[int, Link] = {}
        self._seed: Link | None = None
        self._sponsor: int | None = None
        self._awaited: tuple[int, int] | None = None  # who was asked for a state; its token
        self._token = 0  # of the latest request
        self._sessions: dict[bytes, tuple[Session, bool]] = {}
        self._neighbours: set[int] = set()
        self._graph: tuple[list[int], dict[int, set[int]]] = ([], {})
        self._final: int | None = None
        self._clock_sent_at = 0.0
        self._clock_changed = False
        self._complaints: dict[str, float] = {}
        self.members: tuple[Member, ...] = (own,)
        self._monitor = self._router.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        )
        self._thread = threading.Thread(target=self._main, name="gossamer-io", daemon=True)
        self._check_texts(own)

    # -- the training thread's side

    def start(self) -> None:
        self._thread.start()

    def bootstrap(self) -> None:
        """Begin a run as its first peer."""
        self._command(self._do_adopt, {})

    def join(self, endpoint: str) -> None:
        """Connect to any peer of a run.

        Welcomed or Refused follows, or nothing when nobody is there.
        """
        self._command(self._do_join, endpoint)

    def publish(
        self, *, seq: int, step: int, shares: int, codec: int, produced: float, payload: Buffer
    ) -> None:
        """Broadcast an update; the payload must not change any more."""
        update = Update(self.origin, seq, step, shares, codec, produced, payload)
        self._command(self._do_publish, update)

    def request_state(self, token: int, have: str = "") -> None:
        """Ask a neighbour for its state; StateArrived follows, or nothing.

        token: from 1 on. While a state is arriving, this only gives it the new token.
        have:  digest of what this peer holds already
        """
        self._command(self._do_request_state, token, have)

    def send_state(self, origin: int, token: int, payload: Buffer) -> None:
        """Answer StateRequested."""
        self._command(self._do_send_state, origin, token, payload)

    def adopt(self, clock: Mapping[int, int]) -> None:
        """Go on from a state with this vector clock."""
        self._command(self._do_adopt, dict(clock))

    def finish(self, clock: Mapping[int, int]) -> None:
        """Take no more steps. `clock` is what has been applied; call again when it changes."""
        self._command(self._do_finish, clock_hash(clock))

    def poll(self, timeout: float = 0.0) -> list[Event]:
        """All events so far, waiting up to `timeout` seconds for the first."""
        with self._events_ready:
            if not self._events and timeout > 0:
                self._events_ready.wait(timeout)
            events = list(self._events)
            self._events.clear()
            full, self._inbox_bytes = self._inbox_bytes > self.config.inbox_bytes, 0
        if full:
            self._signal()
        return events

    def close(self) -> None:
        """Say goodbye and end the thread."""
        self._stop.set()
        self._signal()
        if self._thread.is_alive():
            self._thread.join(LINGER_MILLISECONDS / 1000 + 5)
        if not self._thread.ident:
            self._close_sockets()
        if not self._thread.is_alive() and self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    # -- commands, on the I/O thread

    def _do_join(self, endpoint: str) -> None:
        if self._seed is not None:
            self._seed.close()
        self._seed = self._new_link(endpoint, origin=0)
        if not self._open(self._seed):
            self._emit(
                Refused(f"cannot connect to {endpoint!r}: an endpoint is like tcp://10.0.0.5:7000")
            )

    def _do_publish(self, update: Update) -> None:
        self._broadcast.publish(update)
        self._clock_changed = True

    def _do_adopt(self, clock: dict[int, int]) -> None:
        try:
            ready = self._broadcast.adopt(clock)
        except Gone:
            raise TransportError(
                "this peer fell so far behind that its own updates have left the log"
            ) from None
        self._in_run = True
        for update in ready:
            self._deliver(update)
        if self._membership.own.status is Status.JOINING:
            self._membership.set_status(Status.TRAINING)
        self._sponsor = None
        self._members_changed([])
        self._tell_all()

    def _do_finish(self, final: int) -> None:
        self._final = final
        self._settle()

    def _do_request_state(self, token: int, have: str) -> None:
        self._token = token
        patience = max(STALL_SECONDS, self.config.peer_timeout / 2)
        if self._awaited and self._assembly.arriving(Kind.STATE, time.monotonic() - patience):
            return
        rows = (
            self._membership.get(origin) for origin, link in self._links.items() if link.established
        )
        sources = [r.origin for r in rows if r and r.alive and r.status is not Status.JOINING]
        if sources:
            self._sponsor = sources[token % len(sources)]
            self._awaited = (self._sponsor, token)
            self._control(self._sponsor, StateRequest(token, have))

    def _do_send_state(self, origin: int, token: int, payload: Buffer) -> None:
        link = self._links.get(origin)
        if link is not None:
            now = time.monotonic()
            link.enqueue(Transfer.of_state(self.origin, token, payload, now))

    # -- the loop

    def _main(self) -> None:
        try:
            self._loop()
        except BaseException as error:
            log.exception("event=io_thread_failed peer=%s", self.config.peer)
            self._emit(Failed(error))
        finally:
            self._close_sockets()

    def _loop(self) -> None:
        last = time.monotonic()
        while not self._stop.is_set():
            self._wait()
            now = time.monotonic()
            if now - last > max(1.0, self.config.peer_timeout / 4):
                self._membership.forgive(now - last)
            last = now
            while self._commands:
                command, *arguments = self._commands.popleft()
                command(*arguments)
            self._receive(now)
            self._watch(now)
            self._broadcast.tick(now)
            self._settle()
            self._send_clocks(now)
            self._pump(now)
        self._leave()

    def _wait(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake, zmq.POLLIN)
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        for link in self._all_links():
            poller.register(link.control, zmq.POLLIN)
            poller.register(link.data, zmq.POLLIN | (zmq.POLLOUT if link.blocked else 0))
        poller.poll(round(TICK_SECONDS * 1000))
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def _receive(self, now: float) -> None:
        while self._monitor.poll(0):
            zmq.utils.monitor.recv_monitor_message(self._monitor)
            self._complain("port", "a connection did not complete the ZMTP handshake")
        for _ in range(256):
            try:
                routing, *frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            self._received(bytes(routing.buffer), [frame.buffer for frame in frames], now)
        for link in self._all_links():
            for socket in (link.control, link.data):
                # A reply may close this link, another one, or replace its sockets.
                while not socket.closed:
                    try:
                        reply = socket.recv_multipart(zmq.NOBLOCK)
                    except zmq.Again:
                        break
                    self._replied(link, list(reply), now)

    def _watch(self, now: float) -> None:
        partners = self._neighbours | ({self._sponsor} if self._sponsor else set())
        for member in self._membership.watch(partners, now):
            log.warning(
                "event=peer_dead peer=%s silent_seconds=%.1f", member.peer, self.config.peer_timeout
            )
            self._members_changed([member])
        silent = [
            routing
            for routing, (session, _) in self._sessions.items()
            if now - session.heard > self.config.peer_timeout
        ]
        for routing in silent:
            del self._sessions[routing]
        self._assembly.expire(now - self.config.peer_timeout)

    def _pump(self, now: float) -> None:
        for link in self._all_links():
            link.greet(now)
            link.pump(self._run, now, self._age)
        self.congested = any(
            self._links[peer].backlog(self.origin) >= MAX_BACKLOG
            and not self._links[peer].stalled(now)
            for peer in self._broadcast.children(self.origin)
            if peer in self._links and self._takes_part(peer)
        )
        if self._inbox_bytes <= self.config.inbox_bytes:
            for session in {id(s): s for s, _ in self._sessions.values()}.values():
                due = session.credit_due()
                if due is None or session.control is None:
                    continue
                # A grant that did not leave would be lost for good: it is tried again.
                if self._reply(session.control, Credit(session.session, due)):
                    session.granted = due

    # -- what arrives

    def _received(self, routing: bytes, frames: list[Buffer], now: float) -> None:
        self.traffic.count_received(*frames)
        try:
            run, message = decode(frames, max_total_bytes=self._max_total(frames))
            if isinstance(message, Hello):
                self._on_hello(routing, run, message, now)
                return
            session, data = self._sessions.get(routing, (None, False))
            if session is None or run != self._run:
                text = "say Hello first"
                self._reply(routing, Error(ErrorCode.UNKNOWN_SESSION, text))
                return
            session.heard = now
            self._membership.heard(session.origin, now)
            if isinstance(message, Chunk):
                if not data:
                    raise ProtocolError("a chunk on the control channel")
                self._on_chunk(session, message, now)
            else:
                self._on_control(session, message, now)
        except ProtocolError as error:
            session, _ = self._sessions.get(routing, (None, False))
            member = self._membership.get(session.origin) if session is not None else None
            self._complain(member.peer if member else "an unknown sender", str(error))

    def _max_total(self, frames: list[Buffer]) -> int:
        is_state = len(frames[0]) > 5 and frames[0][5] == Kind.STATE if frames else False
        return self.config.max_state_bytes if is_state else self.config.max_update_bytes

    def _on_hello(self, routing: bytes, run: int, hello: Hello, now: float) -> None:
        if not self._in_run:
            return  # who greets will greet again
        if run not in (0, self._run):
            self._refuse(
                routing,
                hello,
                f"{self.endpoint} belongs to the run {self._run_name!r}; "
                "join with the endpoint of a peer of your own run",
            )
            return
        if hello.signature != self.config.signature:
            self._refuse(
                routing,
                hello,
                "the models differ: this run trains "
                f"{self._description}, {hello.member.peer} brings "
                f"{hello.description}; start every peer with the same model",
            )
            return
        is_new = self._membership.get(hello.member.origin) is None
        if is_new and any(m.peer == hello.member.peer for m in self._membership.living()):
            self._refuse(
                routing,
                hello,
                f"a peer named {hello.member.peer!r} is in the run; give this one another "
                f"name, or wait {self.config.peer_timeout:.0f} s if that one has crashed",
            )
            return
        session = self._session_of(hello, now)
        session.heard = now
        if hello.channel:
            session.data = routing
        else:
            session.control = routing
        self._sessions[routing] = (session, bool(hello.channel))
        if hello.channel == 0:
            self._membership.heard(hello.member.origin, now)
            self._merge([hello.member])
            rows = self._membership.rows()
            self._reply(
                routing,
                Welcome(
                    self.origin,
                    session.session,
                    session.granted,
                    rows,
                    self._run_name or "",
                    self._settings,
                ),
            )

    def _session_of(self, hello: Hello, now: float) -> Session:
        origin = hello.member.origin
        for routing, (session, _) in list(self._sessions.items()):
            if session.origin == origin:
                if session.session == hello.session:
                    return session
                del self._sessions[routing]
        return Session(origin, hello.session, now)

    def _on_chunk(self, session: Session, chunk: Chunk, now: float) -> None:
        session.advance(chunk)
        if chunk.kind is Kind.STATE:
            if self._awaited != (session.origin, chunk.seq):
                return
            state = self._assembly.add(chunk, session.origin, now)
            if state is not None:
                self._awaited = None
                self._emit(StateArrived(self._token, state))
            return
        if chunk.origin == self.origin:
            raise ProtocolError("an update in the name of the peer that received it")
        origin, via = chunk.origin, session.origin
        known = self._broadcast.has(origin, chunk.seq)
        if known or self._assembly.other_source(chunk, via, now - STALL_SECONDS):
            if chunk.offset == 0:
                self._broadcast.refuse_duplicate(origin, via)
            if known:
                return
        self._broadcast.progress(origin, chunk.seq, now)
        payload = self._assembly.add(chunk, via, now)
        if payload is None:
            return
        link = self._links.get(via)
        delay = (link.round_trip_seconds or 0.0) / 2 if link else 0.0
        produced = now - chunk.age_microseconds * 1e-6 - delay
        update = Update(origin, chunk.seq, chunk.step, chunk.shares, chunk.codec, produced, payload)
        for ready in self._broadcast.offer(update, via, now):
            self._deliver(ready)

    def _on_control(self, session: Session, message: Control, now: float) -> None:
        peer = session.origin
        match message:
            case Clock():
                session.wanted, session.echo, session.echo_at = message.wanted, message.sent, now
                link = self._links.get(peer)
                if link is not None:
                    elapsed = now - (message.echo + message.held) * 1e-6
                    if message.echo and elapsed >= 0:
                        best = link.round_trip_seconds
                        link.round_trip_seconds = min(elapsed, elapsed if best is None else best)
                    link.acknowledged(message.received)
                self._broadcast.heard_clock(peer, message.received, now)
                if message.members != self._membership.digest:
                    self._tell_members(session)
                    # The neighbour sends its table when it sees that this one differs.
                    self._clock_changed = True
                self._connect_links()
            case Members():
                self._merge(message.members)
            case Graft():
                try:
                    self._broadcast.grafted(peer, message.origin, message.first, message.last)
                except Gone:
                    self._control(peer, Error(ErrorCode.GONE, f"{message.origin:x}"))
            case Prune():
                self._broadcast.pruned(peer, message.origin)
                if peer in self._links:
                    self._links[peer].cancel(message.origin)
            case StateRequest():
                self._emit(StateRequested(peer, message.token, message.have))
            case Error(code=ErrorCode.GONE):
                self._emit(Desynchronized(peer))
            case _:
                raise ProtocolError(f"{message.kind.name} on a link of the other direction")

    def _replied(self, link: Link, frames: list[Buffer], now: float) -> None:
        self.traffic.count_received(*frames)
        try:
            run, message = decode(frames, max_total_bytes=0)
            match message:
                case Welcome() if message.session == link.session:
                    self._on_welcome(link, run, message, now)
                case Credit() if message.session == link.session:
                    link.granted = max(link.granted, message.granted)
                    self._membership.heard(link.origin, now)
                case Error(code=ErrorCode.UNKNOWN_SESSION):
                    if link.established:
                        link.reset(now)
                        self._broadcast.link_down(link.origin)
                case Error(code=ErrorCode.REFUSED):
                    # Who is in the run already is refused only until the other one knows of it.
                    if link is self._seed and not link.refused:
                        link.refused = True
                        self._emit(Refused(message.text))
                    self._complain(link.endpoint, f"it refuses this peer: {message.text}")
                case Members() if link.origin:
                    self._merge(message.members)
                case Welcome() | Credit():
                    pass
                case _:
                    raise ProtocolError(f"{type(message).__name__} as a reply")
        except ProtocolError as error:
            self._complain(link.endpoint, str(error))

    def _on_welcome(self, link: Link, run: int, welcome: Welcome, now: float) -> None:
        if link is self._seed:
            if all(m.origin != welcome.origin for m in welcome.members):
                raise ProtocolError("a Welcome without its sender")
            self._seed, self._in_run = None, True
            self._run_name, self._run = welcome.run, run
            self._settings = welcome.settings
            link.origin = self._sponsor = welcome.origin
            if link.origin in self._links:
                self._links[link.origin].close()
            self._links[link.origin] = link
            self._emit(Welcomed(welcome.run, welcome.settings))
        if welcome.origin != link.origin:
            raise ProtocolError("another peer listens where a member of the run did")
        link.welcomed(welcome.granted, now)
        self._membership.heard(link.origin, now)
        self._broadcast.link_up(link.origin)
        self._merge(welcome.members)
        self._clock_changed = True

    # -- members and links

    def _merge(self, rows: Sequence[Member]) -> None:
        news = self._membership.merge(rows)
        if news:
            self._members_changed(news)
        if any(row.origin == self.origin for row in news):
            # The own death was refuted. Whoever believed in it no longer listens to clocks.
            self._tell_all()

    def _tell_all(self) -> None:
        for origin in self._links:
            self._control(origin, Members(self._membership.rows()))

    def _tell_members(self, session: Session) -> None:
        """Send the table to a neighbour; by the way back when there is no link to it."""
        rows = Members(self._membership.rows())
        link = self._links.get(session.origin)
        if link is not None and link.established:
            link.send_control(rows.encode(self._run))
        elif session.control is not None:
            self._reply(session.control, rows)

    def _members_changed(self, news: list[Member]) -> None:
        living = self._membership.living()
        # Two peers with one name, who joined at the same moment by different peers, are told apart.
        by_name: dict[str, int] = {}
        for m in living:
            by_name[m.peer if m.peer not in by_name else f"{m.peer}/{m.origin:x}"] = m.origin
        graph = {
            by_name[peer]: {by_name[other] for other in others}
            for peer, others in self._overlay(list(by_name), self._settings).items()
        }
        order = list(by_name.values())
        if (order, graph) != self._graph:
            self._graph = (order, graph)
            self._neighbours = graph.get(self.origin, set())
            self._broadcast.set_overlay(graph, order)
        self._clock_changed = True
        self.members = tuple(self._membership.rows())
        for member in news:
            if member.origin != self.origin:
                self._emit(MemberChanged(member))
        self._connect_links()

    def _connect_links(self) -> None:
        now = time.monotonic()
        # A neighbour whose link closed before it was established cannot say that it wants none.
        lately = now - self.config.peer_timeout / 4
        wanting = {s.origin for s, _ in self._sessions.values() if s.wanted and s.heard > lately}
        edges = self._neighbours | ({self._sponsor} if self._sponsor else set())
        for origin in [
            o for o in self._links if not self._membership.alive(o) or o not in edges | wanting
        ]:
            link = self._links.pop(origin)
            link.wanted = False
            self._send_clock(origin, link, now)
            link.close(linger_milliseconds=100)
            self._broadcast.link_down(origin)
        if not self._in_run:
            return
        for origin in edges | wanting:
            member = self._membership.get(origin)
            if member is None or not member.alive or origin == self.origin:
                continue
            if origin not in self._links:
                self._links[origin] = self._new_link(member.endpoint, origin=origin)
                self._open(self._links[origin])
            self._links[origin].wanted = origin in edges

    def _new_link(self, endpoint: str, *, origin: int) -> Link:
        return Link(
            self._context,
            endpoint,
            self._hello,
            self.traffic,
            origin=origin,
            outbox_bytes=self.config.log_bytes // 4,
        )

    def _open(self, link: Link) -> bool:
        try:
            link.connect()
        except zmq.ZMQError as error:
            self._complain(link.endpoint, f"cannot connect: {error}")
            return False
        return True

    def _takes_part(self, origin: int) -> bool:
        member = self._membership.get(origin)
        return member is not None and member.status is not Status.JOINING

    def _settle(self) -> None:
        """After `finish`: DONE, then COMPLETE once nobody trains, then drained once all agree."""
        if self._final is None:
            return
        others = [m for m in self._membership.living() if m.origin != self.origin]
        own = self._membership.own
        if all(m.status >= Status.DONE for m in others):
            changed = self._membership.set_status(Status.COMPLETE, self._final)
            self.drained = all(
                m.status is Status.COMPLETE and m.final == self._final for m in others
            )
        else:
            self.drained = False
            changed = own.status < Status.DONE and self._membership.set_status(Status.DONE)
        if changed:
            self._members_changed([])
            self._tell_all()
        if self.drained:
            with self._events_ready:
                self._events_ready.notify_all()

    def _leave(self) -> None:
        self._membership.set_status(Status.LEFT)
        self._tell_all()

    # -- sending

    def _send_clocks(self, now: float) -> None:
        interval = CLOCK_INTERVAL_SECONDS if self._clock_changed else self._heartbeat_seconds
        if now - self._clock_sent_at < interval:
            return
        self._clock_sent_at, self._clock_changed = now, False
        for origin, link in self._links.items():
            self._send_clock(origin, link, now)

    def _send_clock(self, origin: int, link: Link, now: float) -> None:
        if not link.established:
            return
        session = next((s for s, _ in self._sessions.values() if s.origin == origin), None)
        echo = session.echo if session is not None else 0
        held = int((now - session.echo_at) * 1e6) if session is not None else 0
        received, digest = self._broadcast.received, self._membership.digest
        clock = Clock(received, digest, link.wanted, int(now * 1e6), echo, held)
        link.send_control(clock.encode(self._run))

    @property
    def _heartbeat_seconds(self) -> float:
        return min(1.0, self.config.peer_timeout / 10)

    def _send_update(self, peer: int, update: Update) -> None:
        if peer in self._links:
            self._links[peer].enqueue(Transfer.of_update(update))

    def _age(self, transfer: Transfer, now: float) -> int:
        return max(0, int((now - transfer.produced) * 1e6))

    def _control(self, origin: int, message: Control) -> None:
        link = self._links.get(origin)
        if link is not None and link.established:
            link.send_control(message.encode(self._run))

    def _reply(self, routing: bytes, message: Control) -> bool:
        frame = message.encode(self._run)
        try:
            self._router.send_multipart([routing, frame], zmq.NOBLOCK)
        except zmq.ZMQError:
            return False  # the connection is gone, or its pipe is full
        self.traffic.count_sent(frame)
        return True

    def _refuse(self, routing: bytes, hello: Hello, text: str) -> None:
        self._complain(hello.member.peer, f"refused: {text}")
        self._reply(routing, Error(ErrorCode.REFUSED, text))

    def _hello(self, session: int, channel: int) -> bytes:
        own, signature = self._membership.own, self.config.signature
        return Hello(own, session, channel, signature, self._description).encode(self._run)

    # -- small things

    def _check_texts(self, own: Member) -> None:
        config = self.config
        welcome = Welcome(own.origin, 0, 0, [own], config.run or "", self._settings)
        hello = Hello(own, 0, 0, config.signature, "")
        try:
            for message in (hello, welcome):
                decode([message.encode(0)], max_total_bytes=0)
        except ProtocolError as error:
            self.close()
            raise TransportError(f"peer {config.peer!r} cannot introduce itself: {error}") from None

    def _bind(self) -> "tuple[zmq.Socket[bytes], str]":
        router = self._context.socket(zmq.ROUTER)
        router.linger = 0
        router.ipv6 = "[" in self.config.bind
        router.router_mandatory = True
        router.sndhwm = router.rcvhwm = 64
        router.maxmsgsize = CHUNK_BYTES + 4096
        router.handshake_ivl = 5000
        try:
            router.bind(self.config.bind)
        except zmq.ZMQError as error:
            router.close()
            self._context.term()
            os.close(self._wake)
            self._wake = -1
            reason = zmq.strerror(error.errno or 0)
            raise BindError(f"cannot listen on {self.config.bind}: {reason}") from None
        return router, router.getsockopt_string(zmq.LAST_ENDPOINT)

    def _close_sockets(self) -> None:
        self._router.disable_monitor()
        self._monitor.close(linger=0)
        self._router.close(linger=0)
        for link in self._all_links():
            link.close(linger_milliseconds=LINGER_MILLISECONDS)
        self._context.term()

    def _all_links(self) -> list[Link]:
        return [*self._links.values(), *([self._seed] if self._seed is not None else [])]

    def _deliver(self, update: Update) -> None:
        self._clock_changed = True
        self._emit(update, len(update.payload))

    def _emit(self, event: Event, payload_bytes: int = 0) -> None:
        with self._events_ready:
            self._events.append(event)
            self._inbox_bytes += payload_bytes
            self._events_ready.notify_all()

    def _command(self, *command: Any) -> None:
        if self._stop.is_set() or (self._thread.ident and not self._thread.is_alive()):
            raise TransportError("the node is closed")
        self._commands.append(command)
        self._signal()

    def _signal(self) -> None:
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def _complain(self, who: str, text: str) -> None:
        """Log a refusal, at most once a second per sender."""
        now = time.monotonic()
        if len(self._complaints) >= MAX_COMPLAINERS:
            self._complaints = {w: at for w, at in self._complaints.items() if now - at < 1.0}
        known = who in self._complaints
        if not known and len(self._complaints) >= MAX_COMPLAINERS:
            return
        if not known or now - self._complaints[who] >= 1.0:
            self._complaints[who] = now
            log.warning("event=refused from=%r reason=%r", who, text)


def clock_hash(clock: Mapping[int, int]) -> int:
    """Equal for two peers that have applied the same updates."""
    pairs = sorted((origin, seq) for origin, seq in clock.items() if seq)
    return xxh3_64_intdigest(msgspec.msgpack.encode(pairs))


def _run_hash(name: str | None) -> int:
    return 0 if name is None else xxh3_64_intdigest(name.encode())
