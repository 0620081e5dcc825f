"""One neighbour: the sending side of the link to it.

A Link owns two DEALER sockets that connect to the neighbour's ROUTER: one for data, one for
control, so that a heartbeat never waits behind megabytes. Data is cut into chunks and sent only
within the byte credit that the receiver granted; both counts are cumulative, so a repeated or
lost message does no harm. What the receiver knows of a Link is a Session.

    Link:  connecting --Hello on control--> waiting --Welcome--> established, Hello on data
           any --Error(UNKNOWN_SESSION): the connection was new to the other side--> connecting

A reset takes new connections, so that nothing of the old session is taken for the new one, and
drops what was queued: the receiver's clock shows what it lacks, and it asks again.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import zmq

from gossamer.transport.broadcast import Update
from gossamer.transport.message import CHUNK_BYTES, Buffer, Chunk, Kind

HELLO_INTERVAL_SECONDS = 0.2
ZERO_COPY_BYTES = 64 * 1024
STALL_SECONDS = 2.0


class Traffic:
    """Bytes that crossed this peer's sockets, ZMTP framing included."""

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0

    @staticmethod
    def frame_bytes(frame: Buffer) -> int:
        """A ZMTP frame costs a flag byte and a length of 1 or 8 bytes (ZMTP 3.1, section 3)."""
        return len(frame) + (2 if len(frame) < 256 else 9)

    def count_sent(self, *frames: Buffer) -> None:
        self.sent += sum(map(self.frame_bytes, frames))

    def count_received(self, *frames: Buffer) -> None:
        self.received += sum(map(self.frame_bytes, frames))


@dataclass(slots=True)
class Transfer:
    """A payload on its way to one neighbour."""

    kind: Kind
    origin: int
    seq: int
    shares: int
    step: int
    codec: int
    produced: float
    payload: Buffer
    offset: int = 0

    @property
    def key(self) -> tuple[Kind, int, int]:
        return (self.kind, self.origin, self.seq)

    @classmethod
    def of_update(cls, update: Update) -> "Transfer":
        return cls(
            Kind.UPDATE,
            update.origin,
            update.seq,
            update.shares,
            update.step,
            update.codec,
            update.produced,
            update.payload,
        )

    @classmethod
    def of_state(cls, origin: int, token: int, payload: Buffer, now: float) -> "Transfer":
        return cls(Kind.STATE, origin, token, 1, 0, 0, now, payload)


class Link:
    """The sending side of a link to one neighbour.

    hello(session, channel): the Hello frame for one of the two sockets
    origin:                  the neighbour; 0 while it is not known
    outbox_bytes:            beyond that no update is queued; the neighbour will ask for it
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        endpoint: str,
        hello: Callable[[int, int], bytes],
        traffic: Traffic,
        *,
        origin: int,
        outbox_bytes: int,
    ) -> None:
        self.endpoint, self.origin = endpoint, origin
        self.wanted = True
        self.refused = False
        self.round_trip_seconds: float | None = None
        self._context, self._hello, self._traffic = context, hello, traffic
        self._outbox: dict[tuple[Kind, int, int], Transfer] = {}
        self._outbox_limit = outbox_bytes
        self._progressed = 0.0
        self._begin(0.0)

    def _begin(self, now: float) -> None:
        self.control = self._dealer(high_water_mark=64)
        self.data = self._dealer(high_water_mark=8)
        self.session = secrets.randbits(63)
        self.established = self.blocked = False
        self.granted = self.position = 0
        self._outbox.clear()
        self._outbox_bytes = 0
        self._data_greeted = False
        self._greeted_at = now - HELLO_INTERVAL_SECONDS

    def _dealer(self, *, high_water_mark: int) -> "zmq.Socket[bytes]":
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.ipv6 = True
        socket.immediate = True
        socket.sndhwm = socket.rcvhwm = high_water_mark
        socket.maxmsgsize = CHUNK_BYTES + 4096
        socket.handshake_ivl = 5000
        socket.reconnect_ivl = 100
        socket.reconnect_ivl_max = 2000
        return socket

    def connect(self) -> None:
        """Raises zmq.ZMQError when the endpoint is malformed."""
        self.control.connect(self.endpoint)
        self.data.connect(self.endpoint)

    def reset(self, now: float) -> None:
        """Begin again with a new session and new connections; what was queued is dropped."""
        self.close()
        self._begin(now)
        self.connect()

    def greet(self, now: float) -> None:
        """Send Hello on the control socket until the Welcome comes, then once on the other.

        The neighbour drops a Hello while it is joining; by its Welcome it is ready for data.
        """
        if self._data_greeted or self.refused or now - self._greeted_at < HELLO_INTERVAL_SECONDS:
            return
        if self.established:
            sent = self._data_greeted = self._send(self.data, self._hello(self.session, 1))
        else:
            sent = self._send(self.control, self._hello(self.session, 0))
        self._greeted_at = now if sent else now - 0.9 * HELLO_INTERVAL_SECONDS

    def welcomed(self, granted: int, now: float) -> None:
        if not self.established:
            self._greeted_at = now - HELLO_INTERVAL_SECONDS
        self.established = True
        self.granted = max(self.granted, granted)
        self._progressed = now

    def send_control(self, frame: bytes) -> bool:
        """Control messages describe state and are repeated: one that cannot leave is dropped."""
        return self._send(self.control, frame)

    def enqueue(self, transfer: Transfer) -> None:
        """Queue a payload, unless it is queued or the outbox is full; a state replaces an older."""
        if transfer.kind is Kind.STATE:
            self._drop(lambda t: t.kind is Kind.STATE)
        elif transfer.key in self._outbox or self._outbox_bytes > self._outbox_limit:
            return
        self._outbox[transfer.key] = transfer
        self._outbox_bytes += len(transfer.payload)

    def cancel(self, origin: int) -> None:
        """Drop queued updates of an origin: the neighbour gets them from elsewhere."""
        self._drop(lambda t: t.kind is Kind.UPDATE and t.origin == origin)

    def acknowledged(self, received: Mapping[int, int]) -> None:
        """Drop queued updates that this vector clock of the neighbour covers."""
        self._drop(lambda t: t.kind is Kind.UPDATE and t.seq <= received.get(t.origin, 0))

    def _drop(self, chosen: Callable[[Transfer], bool]) -> None:
        for transfer in [t for t in self._outbox.values() if chosen(t)]:
            del self._outbox[transfer.key]
            self._outbox_bytes -= len(transfer.payload)

    @property
    def pending(self) -> bool:
        return bool(self._outbox)

    def backlog(self, origin: int) -> int:
        """How many updates of an origin wait to be sent."""
        return sum(kind is Kind.UPDATE and of == origin for kind, of, _ in self._outbox)

    def stalled(self, now: float) -> bool:
        """Has data to send, and none has left for a while."""
        return self.pending and now - self._progressed > STALL_SECONDS

    def pump(self, run: int, now: float, age_of: Callable[[Transfer, float], int]) -> None:
        """Send chunks as far as credit and the socket allow."""
        self.blocked = False
        if not self._outbox:
            self._progressed = now
        while self._outbox and self._data_greeted:
            transfer = next(iter(self._outbox.values()))
            total = len(transfer.payload)
            piece = memoryview(transfer.payload)[
                transfer.offset : min(total, transfer.offset + CHUNK_BYTES)
            ]
            if self.position + len(piece) > self.granted:
                return
            head, body = Chunk(
                transfer.kind,
                transfer.origin,
                transfer.seq,
                transfer.shares,
                transfer.step,
                transfer.codec,
                age_of(transfer, now),
                total,
                transfer.offset,
                self.position + len(piece),
                piece,
            ).encode(run)
            try:
                self.data.send_multipart(
                    [head, body], zmq.NOBLOCK, copy=len(piece) < ZERO_COPY_BYTES
                )
            except zmq.Again:
                self.blocked = True
                return
            self._traffic.count_sent(head, body)
            self.position += len(piece)
            self._progressed = now
            transfer.offset += len(piece)
            if transfer.offset >= total:
                del self._outbox[transfer.key]
                self._outbox_bytes -= total

    def close(self, *, linger_milliseconds: int = 0) -> None:
        self.data.close(linger=0)
        self.control.close(linger=linger_milliseconds)

    def _send(self, socket: "zmq.Socket[bytes]", frame: bytes) -> bool:
        try:
            socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._traffic.count_sent(frame)
        return True
