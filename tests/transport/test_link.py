"""A link over real sockets: its greeting, its credit, its resets."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import zmq

from gossamer.transport.assembly import Assembly
from gossamer.transport.link import (
    HELLO_INTERVAL_SECONDS,
    STALL_SECONDS,
    Link,
    Traffic,
    Transfer,
)
from gossamer.transport.message import CHUNK_BYTES, Chunk, Kind, decode
from gossamer.transport.sessions import CREDIT_WINDOW_BYTES

RUN = 7
PATIENCE_SECONDS = 5.0


@dataclass
class Receiver:
    """The other end: a ROUTER that reads what the link sends, and a clock that the test moves."""

    link: Link
    router: "zmq.Socket[bytes]"
    now: float = 100.0
    hellos: list[tuple[bytes, int, int]] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    assembly: Assembly = field(default_factory=Assembly)

    def run(self, seconds: float = 0.1, *, chunks: int | None = None) -> None:
        """Let the link work for a while, or until so many chunks have come."""
        end = time.monotonic() + (seconds if chunks is None else PATIENCE_SECONDS)
        while time.monotonic() < end and (chunks is None or len(self.chunks) < chunks):
            self.now += 0.01
            self.link.greet(self.now)
            self.link.pump(RUN, self.now, lambda transfer, now: 5)
            while self.router.poll(5):
                routing, *frames = self.router.recv_multipart()
                self._read(routing, list(frames))

    def _read(self, routing: bytes, frames: list[bytes]) -> None:
        if frames[0].startswith(b"hello"):
            _, session, channel = frames[0].split()
            self.hellos.append((routing, int(session), int(channel)))
            return
        if not self.hellos or routing != self.hellos[-1][0] or self.hellos[-1][2] == 0:
            return  # of a connection that was given up
        run, chunk = decode(list(frames), max_total_bytes=1 << 40)
        assert run == RUN
        assert isinstance(chunk, Chunk)
        self.chunks.append(chunk)
        payload = self.assembly.add(chunk, 1, self.now)
        if payload is not None:
            self.payloads.append(bytes(payload))

    def establish(self, granted: int = CREDIT_WINDOW_BYTES) -> None:
        self.run(chunks=None)
        self.link.welcomed(granted, self.now)

    def wait_for_hellos(self, count: int) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while len(self.hellos) < count and time.monotonic() < end:
            self.run(0.02)
        assert len(self.hellos) >= count


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.linger = 0
    router.bind("tcp://127.0.0.1:0")
    link = Link(
        context,
        router.getsockopt_string(zmq.LAST_ENDPOINT),
        lambda session, channel: b"hello %d %d" % (session, channel),
        Traffic(),
        origin=1,
        outbox_bytes=16 * CREDIT_WINDOW_BYTES,
    )
    link.connect()
    yield Receiver(link, router)
    link.close()
    router.close()
    context.term()


def update(seq: int, payload: bytes, origin: int = 5) -> Transfer:
    return Transfer(Kind.UPDATE, origin, seq, 1, 0, 0, 0.0, payload)


def test_link_greets_on_control_until_welcomed_then_once_on_data(receiver: Receiver) -> None:
    receiver.wait_for_hellos(3)
    link = receiver.link
    assert {hello[1:] for hello in receiver.hellos} == {(link.session, 0)}
    receiver.hellos.clear()
    link.welcomed(CREDIT_WINDOW_BYTES, receiver.now)
    receiver.wait_for_hellos(1)
    receiver.now += 10 * HELLO_INTERVAL_SECONDS
    receiver.run(0.2)
    assert [hello[1:] for hello in receiver.hellos] == [(link.session, 1)]


def test_link_that_is_refused_stops_greeting(receiver: Receiver) -> None:
    receiver.wait_for_hellos(1)
    receiver.link.refused = True
    receiver.hellos.clear()
    receiver.now += 10 * HELLO_INTERVAL_SECONDS
    receiver.run(0.1)
    assert receiver.hellos == []


def test_link_sends_data_only_behind_its_hello(receiver: Receiver) -> None:
    payload = os.urandom(3 * CHUNK_BYTES + 1)
    receiver.link.enqueue(update(1, payload))
    receiver.run(0.2)
    assert receiver.chunks == []
    receiver.establish()
    receiver.run(chunks=4)
    assert receiver.payloads == [payload]
    assert receiver.hellos[-1][2] == 1
    assert not receiver.link.pending


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 9 * CHUNK_BYTES])
def test_link_sends_payloads_of_any_size_in_order(receiver: Receiver, size: int) -> None:
    payloads = [os.urandom(size), b"between", os.urandom(size)]
    for seq, payload in enumerate(payloads, 1):
        receiver.link.enqueue(update(seq, payload))
    receiver.establish(granted=1 << 40)
    chunks = 1 + 2 * max(1, -(-size // CHUNK_BYTES))
    receiver.run(chunks=chunks)
    assert receiver.payloads == payloads
    assert receiver.chunks[-1].position == 2 * size + len(b"between")
    assert all(chunk.age_microseconds == 5 for chunk in receiver.chunks)


def test_link_never_exceeds_its_credit(receiver: Receiver) -> None:
    payload = os.urandom(10 * CHUNK_BYTES)
    receiver.link.enqueue(update(1, payload))
    granted = 2 * CHUNK_BYTES + 5
    receiver.establish(granted)
    receiver.run(0.3)
    while receiver.link.pending:
        # Whole chunks only, and as many as the credit holds.
        assert len(receiver.chunks) == granted // CHUNK_BYTES
        assert receiver.chunks[-1].position <= granted
        granted += 3 * CHUNK_BYTES
        receiver.link.granted = granted
        receiver.run(0.2)
    assert receiver.payloads == [payload]


def test_link_takes_an_older_grant_as_nothing_new(receiver: Receiver) -> None:
    receiver.establish(granted=5 * CHUNK_BYTES)
    receiver.link.welcomed(CHUNK_BYTES, receiver.now)
    assert receiver.link.granted == 5 * CHUNK_BYTES


def test_link_without_credit_is_stalled_after_a_while(receiver: Receiver) -> None:
    receiver.establish(granted=CHUNK_BYTES)
    receiver.link.enqueue(update(1, bytes(2 * CHUNK_BYTES)))
    receiver.run(chunks=1)
    assert not receiver.link.stalled(receiver.now)
    receiver.now += STALL_SECONDS + 0.1
    receiver.run(0.1)
    assert receiver.link.stalled(receiver.now)
    receiver.link.granted *= 2
    receiver.run(chunks=2)
    assert not receiver.link.stalled(receiver.now)


def test_reset_begins_a_new_session_on_new_connections(receiver: Receiver) -> None:
    receiver.establish()
    receiver.link.enqueue(update(1, b"sent"))
    receiver.run(chunks=1)
    before, routes = receiver.link.session, {hello[0] for hello in receiver.hellos}
    receiver.link.enqueue(update(2, b"dropped"))
    receiver.link.reset(receiver.now)
    assert receiver.link.session != before
    assert not receiver.link.pending
    assert not receiver.link.established
    assert (receiver.link.position, receiver.link.granted) == (0, 0)
    receiver.hellos.clear()
    receiver.wait_for_hellos(1)
    receiver.establish()
    receiver.link.enqueue(update(3, b"after"))
    receiver.run(chunks=2)
    assert receiver.payloads == [b"sent", b"after"]
    assert receiver.chunks[-1].position == len(b"after")
    assert not routes & {hello[0] for hello in receiver.hellos}


def test_reset_in_mid_transfer_mixes_nothing_into_the_new_session(receiver: Receiver) -> None:
    payload = os.urandom(12 * CHUNK_BYTES)
    receiver.establish(granted=6 * CHUNK_BYTES)  # so that it cannot end before the reset
    receiver.link.enqueue(update(1, payload))
    receiver.run(chunks=3)
    receiver.link.reset(receiver.now)
    receiver.hellos.clear()
    receiver.wait_for_hellos(1)
    receiver.establish()
    receiver.chunks.clear()
    receiver.link.enqueue(update(1, payload))
    receiver.run(chunks=12)
    assert receiver.payloads == [payload]
    positions = [chunk.position for chunk in receiver.chunks[-12:]]
    assert positions == [CHUNK_BYTES * i for i in range(1, 13)]


def test_cancel_drops_the_updates_of_one_origin(receiver: Receiver) -> None:
    link = receiver.link
    for origin in (5, 6):
        for seq in (1, 2):
            link.enqueue(update(seq, b"%d" % origin, origin))
    link.enqueue(Transfer.of_state(5, 1, b"state", 0.0))
    link.cancel(5)
    assert link.backlog(5) == 0
    assert link.backlog(6) == 2
    receiver.establish()
    receiver.run(chunks=3)
    assert receiver.payloads == [b"6", b"6", b"state"]


def test_acknowledged_drops_what_the_neighbour_has(receiver: Receiver) -> None:
    link = receiver.link
    for seq in range(1, 6):
        link.enqueue(update(seq, b"%d" % seq))
    link.acknowledged({5: 3, 6: 9})
    receiver.establish()
    receiver.run(chunks=2)
    assert receiver.payloads == [b"4", b"5"]


def test_enqueue_takes_an_update_once_and_a_state_instead_of_an_older(receiver: Receiver) -> None:
    link = receiver.link
    for _ in range(3):
        link.enqueue(update(1, b"update"))
    for token in (1, 2, 3):
        link.enqueue(Transfer.of_state(9, token, b"state %d" % token, 0.0))
    receiver.establish()
    receiver.run(chunks=2)
    receiver.run(0.1)
    assert receiver.payloads == [b"update", b"state 3"]


def test_enqueue_bounds_the_outbox(receiver: Receiver) -> None:
    size = 4 * CREDIT_WINDOW_BYTES
    shared = bytes(size)
    for seq in range(1, 100):
        receiver.link.enqueue(update(seq, shared))
    assert receiver.link.backlog(5) == 5
    receiver.link.cancel(5)
    receiver.link.enqueue(update(200, b"again"))
    assert receiver.link.backlog(5) == 1


def test_traffic_counts_zmtp_framing() -> None:
    traffic = Traffic()
    traffic.count_sent(bytes(255), bytes(256))
    assert traffic.sent == 255 + 2 + 256 + 9
    traffic.count_received(b"")
    assert traffic.received == 2
