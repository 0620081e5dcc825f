"""One peer's node: the I/O thread that owns the Context and every socket.

The training thread talks to it through a queue of commands and a queue of events, and never
touches a socket. What is done about commands and messages is decided in Protocol; a command is a
method of it and its arguments.

    training thread --commands--> I/O thread --events--> training thread
    ROUTER (one, bound)    receives everything; answers with Welcome, Credit, Error
    DEALER (two per Link)  sends everything else: data on one, control on the other
"""

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import zmq
import zmq.utils.monitor

from gossamer.transport.broadcast import Update
from gossamer.transport.config import NodeConfig
from gossamer.transport.errors import BindError, TransportError
from gossamer.transport.events import Event, Failed
from gossamer.transport.link import Link, Traffic
from gossamer.transport.message import CHUNK_BYTES, Buffer, Member
from gossamer.transport.overlay import OverlayFunction
from gossamer.transport.protocol import Protocol, clock_hash

log = logging.getLogger(__name__)

TICK_SECONDS = 0.05
LINGER_MILLISECONDS = 1000
MAX_RECEIVED_PER_TURN = 256


class Node:
    """A peer's presence on the network.

    config:  see NodeConfig
    overlay: overlay(ids, settings of the run) -> neighbours of each id: a connected, undirected
             graph, the same on every peer
    Raises BindError when the endpoint cannot be bound, TransportError when the config holds text
    that is too long for a message.
    """

    def __init__(self, config: NodeConfig, overlay: OverlayFunction) -> None:
        self.config = config
        self.traffic = Traffic()
        self._commands: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._events: deque[Event] = deque()
        self._events_ready = threading.Condition()
        self._inbox_bytes = 0
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stop = threading.Event()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 8192)
        self._router, self.endpoint = self._bind()
        self._monitor = self._router.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        )
        self._protocol = Protocol(
            config,
            self.endpoint,
            overlay,
            time.monotonic(),
            emit=self._emit,
            reply=self._reply,
            new_link=self._new_link,
        )
        self.origin = self._protocol.origin
        self._thread = threading.Thread(target=self._main, name="gossamer-io", daemon=True)
        try:
            self._protocol.handshake.check_texts()
        except TransportError:
            self.close()
            raise

    # -- the training thread's side

    @property
    def members(self) -> tuple[Member, ...]:
        """All members ever seen, in the order of their ids."""
        return self._protocol.members

    @property
    def congested(self) -> bool:
        """Whether own updates wait for a neighbour: better publish none now."""
        return self._protocol.congested

    @property
    def drained(self) -> bool:
        """Whether, after `finish`, all living peers have applied the same updates."""
        return self._protocol.drained

    def start(self) -> None:
        self._thread.start()

    def bootstrap(self) -> None:
        """Begin a run as its first peer."""
        self._command(self._protocol.adopt, {})

    def join(self, endpoint: str) -> None:
        """Connect to any peer of a run.

        Welcomed or Refused follows, or nothing when nobody is there.
        """
        self._command(self._protocol.join, endpoint)

    def publish(
        self, *, seq: int, step: int, shares: int, codec: int, produced: float, payload: Buffer
    ) -> None:
        """Broadcast an update; the payload must not change any more."""
        update = Update(self.origin, seq, step, shares, codec, produced, payload)
        self._command(self._protocol.publish, update)

    def request_state(self, token: int, have: str = "") -> None:
        """Ask a neighbour for its state; StateArrived follows, or nothing.

        token: from 1 on. While a state is arriving, this only gives it the new token.
        have:  digest of what this peer holds already
        """
        self._command(self._protocol.request_state, token, have)

    def send_state(self, origin: int, token: int, payload: Buffer) -> None:
        """Answer StateRequested."""
        self._command(self._protocol.send_state, origin, token, payload)

    def adopt(self, clock: Mapping[int, int]) -> None:
        """Go on from a state with this vector clock."""
        self._command(self._protocol.adopt, dict(clock))

    def finish(self, clock: Mapping[int, int]) -> None:
        """Take no more steps. `clock` is what has been applied; call again when it changes."""
        self._command(self._protocol.finish, clock_hash(clock))

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

    def _command(self, method: Callable[..., None], *arguments: Any) -> None:
        if self._stop.is_set() or (self._thread.ident and not self._thread.is_alive()):
            raise TransportError("the node is closed")
        self._commands.append((method, arguments))
        self._signal()

    def _signal(self) -> None:
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    # -- the I/O thread

    def _main(self) -> None:
        try:
            self._loop()
        except BaseException as error:
            log.exception("event=io_thread_failed peer=%s", self.config.peer)
            self._emit(Failed(error))
        finally:
            self._close_sockets()

    def _loop(self) -> None:
        protocol = self._protocol
        while not self._stop.is_set():
            self._wait()
            protocol.begin_turn(time.monotonic())
            while self._commands:
                method, arguments = self._commands.popleft()
                method(*arguments)
            self._receive()
            protocol.end_turn()
            if self._inbox_bytes <= self.config.inbox_bytes:
                protocol.grant_credit()
            if protocol.drained:
                with self._events_ready:
                    self._events_ready.notify_all()
        protocol.leave()

    def _wait(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake, zmq.POLLIN)
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        for link in self._protocol.overlay.all_links():
            poller.register(link.control, zmq.POLLIN)
            poller.register(link.data, zmq.POLLIN | (zmq.POLLOUT if link.blocked else 0))
        poller.poll(round(TICK_SECONDS * 1000))
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def _receive(self) -> None:
        while self._monitor.poll(0):
            zmq.utils.monitor.recv_monitor_message(self._monitor)
            text = "a connection did not complete the ZMTP handshake"
            self._protocol.complaints.add("port", text)
        for _ in range(MAX_RECEIVED_PER_TURN):
            try:
                routing, *parts = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            frames: list[Buffer] = [part.buffer for part in parts]
            self.traffic.count_received(*frames)
            self._protocol.received(bytes(routing.buffer), frames)
        for link in self._protocol.overlay.all_links():
            for socket in (link.control, link.data):
                # A reply may close this link, another one, or replace its sockets.
                while not socket.closed:
                    try:
                        reply = socket.recv_multipart(zmq.NOBLOCK)
                    except zmq.Again:
                        break
                    self.traffic.count_received(*reply)
                    self._protocol.replied(link, list(reply))

    # -- what the protocol calls

    def _emit(self, event: Event) -> None:
        with self._events_ready:
            self._events.append(event)
            if isinstance(event, Update):
                self._inbox_bytes += len(event.payload)
            self._events_ready.notify_all()

    def _reply(self, routing: bytes, frame: bytes) -> bool:
        try:
            self._router.send_multipart([routing, frame], zmq.NOBLOCK)
        except zmq.ZMQError:
            return False  # the connection is gone, or its pipe is full
        self.traffic.count_sent(frame)
        return True

    def _new_link(self, endpoint: str, origin: int) -> Link:
        return Link(
            self._context,
            endpoint,
            self._protocol.handshake.hello,
            self.traffic,
            origin=origin,
            outbox_bytes=self.config.log_bytes // 4,
        )

    # -- sockets

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
        for link in self._protocol.overlay.all_links():
            link.close(linger_milliseconds=LINGER_MILLISECONDS)
        self._context.term()
