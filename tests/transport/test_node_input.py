"""What a node makes of bytes that no peer of its run would send: a logged refusal, nothing more."""

import logging
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import zmq
from transport_peer import Peer, all_training, drain, payload_of, until

from gossamer.transport import Member, Refused, Status
from gossamer.transport.message import (
    CHUNK_BYTES,
    Chunk,
    Clock,
    Control,
    Credit,
    Error,
    ErrorCode,
    Graft,
    Hello,
    Kind,
    Members,
    Prune,
    StateRequest,
    Welcome,
    decode,
)
from gossamer.transport.sessions import CREDIT_WINDOW_BYTES

ORIGIN = 77
SESSION = 5


@dataclass
class Stranger:
    """Two DEALERs that speak the protocol as the test tells them."""

    control: "zmq.Socket[bytes]"
    data: "zmq.Socket[bytes]"
    run: int

    def say(self, message: Control, *, data: bool = False, run: int | None = None) -> None:
        socket = self.data if data else self.control
        socket.send(message.encode(self.run if run is None else run))

    def send_chunk(self, *, control: bool = False, **change: Any) -> None:
        fields: dict[str, Any] = {
            "kind": Kind.UPDATE,
            "origin": ORIGIN,
            "seq": 1,
            "shares": 1,
            "step": 0,
            "codec": 0,
            "age_microseconds": 0,
            "total": 3,
            "offset": 0,
            "position": 3,
            "payload": payload_of(ORIGIN, 1, 3),
        }
        frames = Chunk(**{**fields, **change}).encode(self.run)
        (self.control if control else self.data).send_multipart(frames)

    def hear(self, kind: type[Control], *, data: bool = False) -> Any:
        """The next message of a kind; fails when none comes."""
        socket, end = self.data if data else self.control, time.monotonic() + 5
        while time.monotonic() < end:
            if socket.poll(50):
                _, message = decode(list(socket.recv_multipart()), max_total_bytes=0)
                if isinstance(message, kind):
                    return message
        raise AssertionError(f"no {kind.__name__} came")

    def hello(self, **change: Any) -> Hello:
        row = Member("stranger", ORIGIN, "tcp://127.0.0.1:1", 0, 0, Status.TRAINING)
        fields: dict[str, Any] = {
            "member": row,
            "session": SESSION,
            "channel": 0,
            "signature": "",
            "description": "",
        }
        return Hello(**{**fields, **change})

    def enter(self) -> Welcome:
        """Become a member whose own endpoint nobody reaches."""
        self.say(self.hello())
        welcome = self.hear(Welcome)
        self.say(self.hello(channel=1), data=True)
        assert isinstance(welcome, Welcome)
        return welcome


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    pair = [Peer("a", first=True, max_update_bytes=1 << 20, max_state_bytes=1 << 20)]
    pair.append(Peer("b", first=False))
    pair[0].begin()
    pair[1].begin(pair[0].node.endpoint)
    all_training(pair)
    yield pair
    for peer in pair:
        peer.node.close()


@pytest.fixture
def stranger(peers: list[Peer]) -> Iterator[Stranger]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sockets = [context.socket(zmq.DEALER) for _ in range(2)]
    for one in sockets:
        one.linger = 0
        one.connect(peers[0].node.endpoint)
    yield Stranger(sockets[0], sockets[1], peers[0].node._protocol.handshake.run)
    for one in sockets:
        one.close()
    context.term()


@pytest.fixture
def refusals(caplog: pytest.LogCaptureFixture) -> Callable[[str], bool]:
    """Whether a refusal with this text was logged."""
    caplog.set_level(logging.WARNING, logger="gossamer.transport")
    return lambda text: any(
        "event=refused" in record.getMessage() and text in record.getMessage()
        for record in caplog.records
    )


def assert_still_working(peers: list[Peer]) -> None:
    for peer in peers:
        peer.publish(1000)
        peer.publish(400_000)
    until(peers, lambda: peers[0].clock == peers[1].clock, 10, "updates flow")
    assert all(peer.clock[peer.origin] >= 2 for peer in peers)
    assert all(peer.status_of(name) is Status.TRAINING for peer in peers for name in ("a", "b"))


def test_random_bytes_by_tcp_are_refused(
    peers: list[Peer], refusals: Callable[[str], bool]
) -> None:
    host, port = peers[0].node.endpoint.removeprefix("tcp://").split(":")
    rng = random.Random(3)
    greetings = [
        rng.randbytes(1000),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        # A right signature and version of ZMTP, then garbage in place of the mechanism.
        b"\xff" + bytes(8) + b"\x7f\x03\x00" + rng.randbytes(500),
        b"\xff" * 100_000,
        bytes(100_000),
    ]
    for greeting in greetings:
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(greeting)
    until(peers, lambda: refusals("ZMTP"), 8, "the refusal is logged")
    assert_still_working(peers)
    drain(peers)


def test_random_frames_are_refused(
    peers: list[Peer], stranger: Stranger, refusals: Callable[[str], bool]
) -> None:
    rng = random.Random(4)
    stranger.data.send(b"")
    for _ in range(300):
        count = rng.randrange(1, 5)
        stranger.data.send_multipart([rng.randbytes(rng.randrange(300)) for _ in range(count)])
        stranger.data.send_multipart([b"GSMR\x01" + rng.randbytes(100)])
    until(peers, lambda: refusals("an unknown sender"), 5, "the refusal is logged")
    assert_still_working(peers)
    drain(peers)


def test_frame_beyond_the_limit_closes_that_connection_alone(
    peers: list[Peer], stranger: Stranger
) -> None:
    stranger.data.send(bytes(2 * CHUNK_BYTES))
    assert_still_working(peers)
    received = peers[0].node.traffic.received
    drain(peers)
    assert received < peers[1].node.traffic.sent + CHUNK_BYTES


def test_messages_before_a_hello_are_told_so(peers: list[Peer], stranger: Stranger) -> None:
    stranger.send_chunk()
    assert stranger.hear(Error, data=True).code is ErrorCode.UNKNOWN_SESSION
    for message in (Prune(5), Graft(5, 1, 2), Members([]), Credit(1, 2), StateRequest(1)):
        stranger.say(message)
        assert stranger.hear(Error).code is ErrorCode.UNKNOWN_SESSION
    assert_still_working(peers)


def test_chunk_on_the_control_channel_is_refused(
    peers: list[Peer], stranger: Stranger, refusals: Callable[[str], bool]
) -> None:
    stranger.enter()
    stranger.send_chunk(control=True)
    until(peers, lambda: refusals("a chunk on the control channel"), 5, "the refusal is logged")
    assert ORIGIN not in peers[0].clock
    stranger.send_chunk()
    until(peers, lambda: peers[0].clock.get(ORIGIN) == 1, 5, "the right channel takes it")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"position": 2}, "at position 2"),
        ({"position": CREDIT_WINDOW_BYTES + 1}, "bytes were granted"),
        ({"position": 1 << 63}, "bytes were granted"),
        ({"total": 1 << 50, "payload": bytes(CHUNK_BYTES), "position": CHUNK_BYTES}, "the limit"),
        ({"kind": Kind.STATE, "total": (1 << 20) + 1}, "the limit is 1048576"),
        ({"offset": 1, "total": 4}, "chunk [1, +3) of 4"),
    ],
    ids=str,
)
def test_chunk_with_forged_fields_is_refused(
    peers: list[Peer],
    stranger: Stranger,
    refusals: Callable[[str], bool],
    change: dict[str, Any],
    reason: str,
) -> None:
    stranger.enter()
    stranger.send_chunk(**change)
    until(peers, lambda: refusals(reason), 5, "the refusal is logged")
    assert ORIGIN not in peers[0].clock
    assert_still_working(peers)


def test_update_in_the_name_of_its_receiver_is_refused(
    peers: list[Peer], stranger: Stranger, refusals: Callable[[str], bool]
) -> None:
    stranger.enter()
    stranger.send_chunk(origin=peers[0].origin, seq=1)
    until(peers, lambda: refusals("in the name of the peer"), 5, "the refusal is logged")
    assert_still_working(peers)


def test_state_that_nobody_asked_for_is_ignored(peers: list[Peer], stranger: Stranger) -> None:
    stranger.enter()
    for token in range(1, 4):
        stranger.send_chunk(kind=Kind.STATE, seq=token, position=3 * token)
    assert_still_working(peers)
    assert peers[0].adoptions == 0


def test_reply_in_the_wrong_direction_is_refused(
    peers: list[Peer], stranger: Stranger, refusals: Callable[[str], bool]
) -> None:
    stranger.enter()
    stranger.say(Credit(SESSION, 1 << 40))
    until(peers, lambda: refusals("CREDIT on a link of the other direction"), 5, "it is logged")
    assert_still_working(peers)


def test_forged_control_messages_break_nothing(peers: list[Peer], stranger: Stranger) -> None:
    """Numbers at their limits, origins that nobody knows, members that nobody reaches."""
    stranger.enter()
    greatest = (1 << 32) - 1
    everything = dict.fromkeys([peers[0].origin, peers[1].origin, ORIGIN, 123], greatest)
    stranger.say(Clock(everything, 0, True, 1, 1, (1 << 63) - 1))
    stranger.say(Clock({}, 0, False, (1 << 63) - 1, (1 << 63) - 1, 0))
    stranger.say(Graft(peers[0].origin, 0, greatest))
    stranger.say(Graft(123, 1, greatest))
    stranger.say(Graft(123, 5, 1))
    stranger.say(Prune(123))
    rows = [
        Member("", 1000, "", 0, 0, Status.TRAINING),
        Member("x", 1001, "no endpoint", 0, 0, Status.DEAD),
        Member("y", 1002, "tcp://[::1", greatest, greatest, Status.LEFT, 1),
        Member("a", peers[0].origin, "tcp://elsewhere:1", 3, 9, Status.DEAD),
    ]
    for row in rows:
        stranger.say(Members([row]))
    until(
        peers,
        lambda: all(
            member is not None and member.alive and member.incarnation == 4
            for member in (peer.member("a") for peer in peers)
        ),
        8,
        "a refutes the forged death",
    )
    member = peers[1].member("a")
    assert member is not None
    assert member.endpoint == peers[0].node.endpoint
    assert_still_working(peers)


def test_wrong_run_is_refused_by_name(peers: list[Peer], stranger: Stranger) -> None:
    stranger.say(stranger.hello(), run=stranger.run + 1)
    error = stranger.hear(Error)
    assert error.code is ErrorCode.REFUSED
    assert "belongs to the run 'run'" in error.text
    assert_still_working(peers)


@pytest.mark.parametrize("length", [0, 3000])
def test_other_model_is_refused_with_both_models_named(length: int) -> None:
    first = Peer("a", first=True, signature="1", description="a net of 3 layers" + "." * length)
    other = Peer("b", first=False, signature="2", description="a net of 5 layers" + "." * length)
    try:
        first.begin()
        other.begin(first.node.endpoint)
        until([first, other], lambda: bool(other.events), 5, "the refusal comes")
        (refusal,) = other.events
        assert isinstance(refusal, Refused)
        assert "the models differ" in refusal.text
        assert "a net of 3 layers" in refusal.text
        assert "b brings a net of 5 layers" in refusal.text
        assert [m.peer for m in first.node.members] == ["a"]
    finally:
        first.node.close()
        other.node.close()


def test_name_that_is_taken_is_refused(peers: list[Peer]) -> None:
    other = Peer("b", first=False)
    try:
        other.begin(peers[0].node.endpoint)
        until([*peers, other], lambda: bool(other.events), 5, "the refusal comes")
        (refusal,) = other.events
        assert isinstance(refusal, Refused)
        assert "a peer named 'b' is in the run" in refusal.text
    finally:
        other.node.close()
    assert_still_working(peers)


def test_peer_does_not_join_itself() -> None:
    peer = Peer("a", first=False)
    try:
        peer.begin(peer.node.endpoint)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            peer.turn(0.01)
        assert peer.events == []
        assert [m.status for m in peer.node.members] == [Status.JOINING]
    finally:
        peer.node.close()


def test_refusals_are_logged_once_a_second_and_for_so_many(
    peers: list[Peer], stranger: Stranger, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="gossamer.transport")
    for i in range(1000):
        row = Member(f"name-{i}", i + 1, "", 0, 0, Status.TRAINING)
        stranger.say(stranger.hello(member=row, signature="other"))
        stranger.say(stranger.hello(member=row, signature="other"))
    assert_still_working(peers)
    stranger.data.send(os.urandom(100))
    messages = [record.getMessage() for record in caplog.records]
    assert 0 < len(messages) < 600
    assert len(peers[0].node._protocol.complaints._logged_at) <= 256


def test_log_line_stays_one_line_whatever_the_name(
    peers: list[Peer], stranger: Stranger, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="gossamer.transport")
    row = Member("evil\nevent=ok", 9, "", 0, 0, Status.TRAINING)
    stranger.say(stranger.hello(member=row, signature="other"))
    until(peers, lambda: bool(caplog.records), 5, "the refusal is logged")
    assert all("\n" not in record.getMessage() for record in caplog.records)
