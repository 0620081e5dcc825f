"""What a peer does about commands, messages and the passing of time.

Joins membership (who), broadcast (what), the overlay (by which links) and the sessions (from
whom); it knows nothing of models. Everything here runs on the I/O thread, in turns:

    begin_turn(now); commands; received(...) and replied(...); end_turn(); grant_credit()

No threads, no clock and no ROUTER of its own: the node calls in with commands, frames and `now` in
seconds, which stands still within a turn, and passes the callbacks that lead out.
"""

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence

import msgspec
from xxhash import xxh3_64_intdigest

from gossamer.transport.broadcast import Broadcast, Gone, Update
from gossamer.transport.complaints import Complaints
from gossamer.transport.config import NodeConfig
from gossamer.transport.errors import ProtocolError, TransportError
from gossamer.transport.events import (
    Desynchronized,
    Event,
    MemberChanged,
    Refused,
    StateRequested,
    Welcomed,
)
from gossamer.transport.handshake import Handshake
from gossamer.transport.intake import Intake
from gossamer.transport.link import STALL_SECONDS, Link, Transfer
from gossamer.transport.membership import Membership
from gossamer.transport.message import (
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
from gossamer.transport.overlay import Overlay, OverlayFunction
from gossamer.transport.sessions import Session, Sessions

log = logging.getLogger(__name__)

CLOCK_INTERVAL_SECONDS = 0.2
MAX_BACKLOG = 4


class Protocol:
    """One peer's part in the run.

    endpoint: where others reach this peer's ROUTER
    overlay:  gives the graph of the run, see Node
    now:      seconds
    emit:     emit(event): tell the training thread
    reply:    reply(routing, frame): answer by the ROUTER; returns False when that cannot be now
    new_link: new_link(endpoint, origin): a link that is not connected yet
    """

    def __init__(
        self,
        config: NodeConfig,
        endpoint: str,
        overlay: OverlayFunction,
        now: float,
        *,
        emit: Callable[[Event], None],
        reply: Callable[[bytes, bytes], bool],
        new_link: Callable[[str, int], Link],
    ) -> None:
        self.origin = secrets.randbits(62) + 1
        self.congested = False
        self.drained = False
        self.complaints = Complaints()
        self._config, self._now = config, now
        self._emit, self._reply = emit, reply
        own = Member(config.peer, self.origin, config.advertise or endpoint, 0, 0, Status.JOINING)
        self.members: tuple[Member, ...] = (own,)
        self._membership = Membership(own, peer_timeout=config.peer_timeout)
        self.handshake = Handshake(config, endpoint, self._membership)
        self._broadcast = Broadcast(
            self.origin,
            send=self._send_update,
            graft=lambda peer, *args: self._send(peer, Graft(*args)),
            prune=lambda peer, origin: self._send(peer, Prune(origin)),
            log_bytes=config.log_bytes,
            max_delay=config.peer_timeout / 4,
        )
        self.overlay = Overlay(
            self.origin, overlay, self._membership, new_link=new_link, complaints=self.complaints
        )
        self._sessions = Sessions()
        self._intake = Intake(self.origin, self._broadcast)
        self._in_run = False
        self._final: int | None = None
        self._clock_sent_at = 0.0
        self._clock_changed = False

    # -- commands, which Node's methods describe

    def join(self, endpoint: str) -> None:
        if not self.overlay.join(endpoint):
            self._emit(
                Refused(f"cannot connect to {endpoint!r}: an endpoint is like tcp://10.0.0.5:7000")
            )

    def publish(self, update: Update) -> None:
        self._broadcast.publish(update)
        self._clock_changed = True

    def adopt(self, clock: dict[int, int]) -> None:
        try:
            ready = self._broadcast.adopt(clock)
        except Gone:
            raise TransportError(
                "this peer fell so far behind that its own updates have left the log"
            ) from None
        self._in_run = True
        self._deliver(ready)
        if self._membership.own.status is Status.JOINING:
            self._membership.set_status(Status.TRAINING)
        self.overlay.sponsor = None
        self._members_changed([])
        self._tell_all()

    def finish(self, final: int) -> None:
        self._final = final
        self._settle()

    def request_state(self, token: int, have: str) -> None:
        patience = max(STALL_SECONDS, self._config.peer_timeout / 2)
        if not self._intake.wants_state(token, self._now - patience):
            return
        links = self.overlay.links.items()
        rows = (self._membership.get(origin) for origin, link in links if link.established)
        sources = [r.origin for r in rows if r and r.alive and r.status is not Status.JOINING]
        if sources:
            self.overlay.sponsor = sponsor = sources[token % len(sources)]
            self._intake.await_state(sponsor, token)
            self._send(sponsor, StateRequest(token, have))

    def send_state(self, origin: int, token: int, payload: Buffer) -> None:
        link = self.overlay.links.get(origin)
        if link is not None:
            link.enqueue(Transfer.of_state(self.origin, token, payload, self._now))

    def leave(self) -> None:
        """Say goodbye."""
        self._membership.set_status(Status.LEFT)
        self._tell_all()

    # -- time

    def begin_turn(self, now: float) -> None:
        """Note the time. When this peer itself stood still, nobody else is to blame for it."""
        stood_still, self._now = now - self._now, now
        if stood_still > max(1.0, self._config.peer_timeout / 4):
            self._membership.forgive(stood_still)

    def end_turn(self) -> None:
        """Do what is due, and send what can leave."""
        self._watch()
        self._broadcast.tick(self._now)
        self._settle()
        self._send_clocks()
        self._pump()

    def grant_credit(self) -> None:
        """Let the neighbours send more, as the training thread keeps up with what came."""
        for session in self._sessions.all():
            due = session.credit_due()
            if due is None or session.control is None:
                continue
            # A grant that did not leave would be lost for good: it is tried again.
            if self._answer(session.control, Credit(session.session, due)):
                session.granted = due

    def _watch(self) -> None:
        timeout = self._config.peer_timeout
        for member in self._membership.watch(self.overlay.edges, self._now):
            log.warning("event=peer_dead peer=%s silent_seconds=%.1f", member.peer, timeout)
            self._members_changed([member])
        self._sessions.expire(self._now - timeout)
        self._intake.expire(self._now - timeout)

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

    def _send_clocks(self) -> None:
        heartbeat = min(1.0, self._config.peer_timeout / 10)
        interval = CLOCK_INTERVAL_SECONDS if self._clock_changed else heartbeat
        if self._now - self._clock_sent_at < interval:
            return
        self._clock_sent_at, self._clock_changed = self._now, False
        for link in self.overlay.links.values():
            self._send_clock(link)

    def _pump(self) -> None:
        for link in self.overlay.all_links():
            link.greet(self._now)
            link.pump(self.handshake.run, self._now, _age_microseconds)
        links = self.overlay.links
        self.congested = any(
            links[peer].backlog(self.origin) >= MAX_BACKLOG and not links[peer].stalled(self._now)
            for peer in self._broadcast.children(self.origin)
            if peer in links and self._takes_part(peer)
        )

    def _takes_part(self, origin: int) -> bool:
        member = self._membership.get(origin)
        return member is not None and member.status is not Status.JOINING

    # -- what arrives by the neighbours' links

    def received(self, routing: bytes, frames: list[Buffer]) -> None:
        """Take in a message that came to the ROUTER."""
        try:
            run, message = decode(frames, max_total_bytes=self._max_total(frames))
            if isinstance(message, Hello):
                self._on_hello(routing, run, message)
                return
            session, data = self._sessions.get(routing)
            if session is None or run != self.handshake.run:
                self._answer(routing, Error(ErrorCode.UNKNOWN_SESSION, "say Hello first"))
                return
            session.heard = self._now
            self._membership.heard(session.origin, self._now)
            if isinstance(message, Chunk):
                if not data:
                    raise ProtocolError("a chunk on the control channel")
                self._on_chunk(session, message)
            else:
                self._on_control(session, message)
        except ProtocolError as error:
            session, _ = self._sessions.get(routing)
            member = self._membership.get(session.origin) if session is not None else None
            self.complaints.add(member.peer if member else "an unknown sender", str(error))

    def _max_total(self, frames: list[Buffer]) -> int:
        is_state = len(frames[0]) > 5 and frames[0][5] == Kind.STATE if frames else False
        return self._config.max_state_bytes if is_state else self._config.max_update_bytes

    def _on_hello(self, routing: bytes, run: int, hello: Hello) -> None:
        if not self._in_run:
            return  # who greets will greet again
        objection = self.handshake.objection(run, hello)
        if objection is not None:
            self.complaints.add(hello.member.peer, f"refused: {objection}")
            self._answer(routing, Error(ErrorCode.REFUSED, objection))
            return
        session = self._sessions.greeted(routing, hello, self._now)
        if hello.channel == 0:
            self._membership.heard(hello.member.origin, self._now)
            self._merge([hello.member])
            self._answer(routing, self.handshake.welcome(session))

    def _on_chunk(self, session: Session, chunk: Chunk) -> None:
        session.advance(chunk)
        if chunk.kind is Kind.STATE:
            state = self._intake.add_state(chunk, session.origin, self._now)
            if state is not None:
                self._emit(state)
            return
        link = self.overlay.links.get(session.origin)
        delay = (link.round_trip_seconds or 0.0) / 2 if link else 0.0
        self._deliver(self._intake.add_update(chunk, session.origin, self._now, delay))

    def _on_control(self, session: Session, message: Control) -> None:
        peer, links = session.origin, self.overlay.links
        match message:
            case Clock():
                self._on_clock(session, message)
            case Members():
                self._merge(message.members)
            case Graft():
                try:
                    self._broadcast.grafted(peer, message.origin, message.first, message.last)
                except Gone:
                    self._send(peer, Error(ErrorCode.GONE, f"{message.origin:x}"))
            case Prune():
                self._broadcast.pruned(peer, message.origin)
                if peer in links:
                    links[peer].cancel(message.origin)
            case StateRequest():
                self._emit(StateRequested(peer, message.token, message.have))
            case Error(code=ErrorCode.GONE):
                self._emit(Desynchronized(peer))
            case _:
                raise ProtocolError(f"{message.kind.name} on a link of the other direction")

    def _on_clock(self, session: Session, clock: Clock) -> None:
        session.wanted, session.echo, session.echo_at = clock.wanted, clock.sent, self._now
        link = self.overlay.links.get(session.origin)
        if link is not None:
            elapsed = self._now - (clock.echo + clock.held) * 1e-6
            if clock.echo and elapsed >= 0:
                best = link.round_trip_seconds
                link.round_trip_seconds = min(elapsed, elapsed if best is None else best)
            link.acknowledged(clock.received)
        self._broadcast.heard_clock(session.origin, clock.received, self._now)
        if clock.members != self._membership.digest:
            self._tell_members(session)
            # The neighbour sends its table when it sees that this one differs.
            self._clock_changed = True
        self._update_links()

    # -- what comes back by the own links

    def replied(self, link: Link, frames: list[Buffer]) -> None:
        """Take in a message that came back by a link."""
        try:
            run, message = decode(frames, max_total_bytes=0)
            match message:
                case Welcome() if message.session == link.session:
                    self._on_welcome(link, run, message)
                case Credit() if message.session == link.session:
                    link.granted = max(link.granted, message.granted)
                    self._membership.heard(link.origin, self._now)
                case Error(code=ErrorCode.UNKNOWN_SESSION):
                    if link.established:
                        link.reset(self._now)
                        self._broadcast.link_down(link.origin)
                case Error(code=ErrorCode.REFUSED):
                    # Who is in the run already is refused only until the other one knows of it.
                    if link is self.overlay.seed and not link.refused:
                        link.refused = True
                        self._emit(Refused(message.text))
                    self.complaints.add(link.endpoint, f"it refuses this peer: {message.text}")
                case Members() if link.origin:
                    self._merge(message.members)
                case Welcome() | Credit():
                    pass
                case _:
                    raise ProtocolError(f"{type(message).__name__} as a reply")
        except ProtocolError as error:
            self.complaints.add(link.endpoint, str(error))

    def _on_welcome(self, link: Link, run: int, welcome: Welcome) -> None:
        if link is self.overlay.seed:
            if all(m.origin != welcome.origin for m in welcome.members):
                raise ProtocolError("a Welcome without its sender")
            self._in_run = True
            self.handshake.welcomed(run, welcome)
            self.overlay.seed_answered(welcome.origin)
            self._emit(Welcomed(welcome.run, welcome.settings))
        if welcome.origin != link.origin:
            raise ProtocolError("another peer listens where a member of the run did")
        link.welcomed(welcome.granted, self._now)
        self._membership.heard(link.origin, self._now)
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

    def _members_changed(self, news: Sequence[Member]) -> None:
        if self.overlay.derive(self._membership.living(), self.handshake.settings):
            self._broadcast.set_overlay(self.overlay.graph, self.overlay.order)
        self._clock_changed = True
        self.members = tuple(self._membership.rows())
        for member in news:
            if member.origin != self.origin:
                self._emit(MemberChanged(member))
        self._update_links()

    def _update_links(self) -> None:
        # A neighbour whose link closed before it was established cannot say that it wants none.
        wanting = self._sessions.wanting(self._now - self._config.peer_timeout / 4)
        for link in self.overlay.take_unwanted(wanting):
            link.wanted = False
            self._send_clock(link)
            link.close(linger_milliseconds=100)
            self._broadcast.link_down(link.origin)
        if self._in_run:
            self.overlay.connect(wanting)

    # -- what leaves

    def _deliver(self, updates: Sequence[Update]) -> None:
        for update in updates:
            self._clock_changed = True
            self._emit(update)

    def _send(self, origin: int, message: Control) -> None:
        link = self.overlay.links.get(origin)
        if link is not None and link.established:
            link.send_control(message.encode(self.handshake.run))

    def _answer(self, routing: bytes, message: Control) -> bool:
        return self._reply(routing, message.encode(self.handshake.run))

    def _send_update(self, peer: int, update: Update) -> None:
        if peer in self.overlay.links:
            self.overlay.links[peer].enqueue(Transfer.of_update(update))

    def _send_clock(self, link: Link) -> None:
        if not link.established:
            return
        session, now = self._sessions.of(link.origin), self._now
        echo = session.echo if session is not None else 0
        held = int((now - session.echo_at) * 1e6) if session is not None else 0
        received, digest = self._broadcast.received, self._membership.digest
        clock = Clock(received, digest, link.wanted, int(now * 1e6), echo, held)
        link.send_control(clock.encode(self.handshake.run))

    def _tell_all(self) -> None:
        for origin in self.overlay.links:
            self._send(origin, Members(self._membership.rows()))

    def _tell_members(self, session: Session) -> None:
        """Send the table to a neighbour; by the way back when there is no link to it."""
        rows = Members(self._membership.rows())
        link = self.overlay.links.get(session.origin)
        if link is not None and link.established:
            link.send_control(rows.encode(self.handshake.run))
        elif session.control is not None:
            self._answer(session.control, rows)


def clock_hash(clock: Mapping[int, int]) -> int:
    """Equal for two peers that have applied the same updates."""
    pairs = sorted((origin, seq) for origin, seq in clock.items() if seq)
    return xxh3_64_intdigest(msgspec.msgpack.encode(pairs))


def _age_microseconds(transfer: Transfer, now: float) -> int:
    return max(0, int((now - transfer.produced) * 1e6))
