"""Every message: its bytes, and what becomes of bytes that are not a message."""

import os
import random
import struct
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from gossamer.transport.errors import ProtocolError
from gossamer.transport.message import (
    CHUNK_BYTES,
    MAX_CONTROL_BYTES,
    MAX_MEMBERS,
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

Message = Control | Chunk

RUN = 0x1122334455667788
LIMIT = 1 << 32
MEMBER = Member(
    "peer-10",
    0x123456789ABCDEF,
    "tcp://127.0.0.1:5555",
    1,
    300,
    Status.COMPLETE,
    0xFEDCBA9876543210,
)

# Written down with struct and the msgpack specification, not with the code under test.
GOLDEN: list[tuple[Message, list[str]]] = [
    (
        Hello(MEMBER, 77, 1, "sig", "a model"),
        [
            "47534d520101000088776655443322116ecd060f9d17fad99597a7706565722d3130cf01234567"
            "89abcdefb47463703a2f2f3132372e302e302e313a3535353501cd012c03cffedcba9876543210"
            "4d01a3736967a761206d6f64656c",
        ],
    ),
    (
        Welcome(5, 77, 4194304, [MEMBER], "run", {"topology": "ring"}),
        [
            "47534d52010200008877665544332211a43cecbfcd5159ef96054dce004000009197a770656572"
            "2d3130cf0123456789abcdefb47463703a2f2f3132372e302e302e313a3535353501cd012c03cf"
            "fedcba9876543210a372756e81a8746f706f6c6f6779a472696e67",
        ],
    ),
    (
        Clock({5: 1, 70000: 2}, 9, True, 1000, 0, 250),
        [
            "47534d52010500008877665544332211fc03055baac984ca96820501ce000111700209c3cd03e800ccfa",
        ],
    ),
    (
        Members([MEMBER]),
        [
            "47534d5201060000887766554433221110e43193fb782ff0919197a7706565722d3130cf012345"
            "6789abcdefb47463703a2f2f3132372e302e302e313a3535353501cd012c03cffedcba98765432"
            "10",
        ],
    ),
    (
        Graft(5, 2, 0xFFFFFFFF),
        [
            "47534d52010700008877665544332211eb1c0d80f1612293930502ceffffffff",
        ],
    ),
    (
        Prune(5),
        [
            "47534d52010800008877665544332211e41fb4713d7ece769105",
        ],
    ),
    (
        Credit(77, 8388608),
        [
            "47534d5201090000887766554433221158ea4f7f191e1f50924dce00800000",
        ],
    ),
    (
        StateRequest(3, "0123abcd"),
        [
            "47534d52010a00008877665544332211b230a27368f2b0109203a83031323361626364",
        ],
    ),
    (
        Error(ErrorCode.REFUSED, "no"),
        [
            "47534d52010b0000887766554433221168b11f80575915c29202a26e6f",
        ],
    ),
    (
        Chunk(Kind.UPDATE, 0x123456789ABCDEF, 7, 3, 1000, 2, 1500, 262147, 262144, 300000, b"abc"),
        [
            "47534d52010300008877665544332211c110100ad97c62dfefcdab896745230107000000030000"
            "00e8030000000000000200000000000000dc050000000000000300040000000000000004000000"
            "0000e093040000000000",
            "616263",
        ],
    ),
    (
        Chunk(Kind.STATE, 5, 1, 1, 0, 0, 0, 4, 0, 4, bytes(range(4))),
        [
            "47534d5201040000887766554433221176f63b50fad5523c050000000000000001000000010000"
            "000000000000000000000000000000000000000000000000000400000000000000000000000000"
            "00000400000000000000",
            "00010203",
        ],
    ),
]
IDS = [type(m).__name__ if isinstance(m, Control) else m.kind.name for m, _ in GOLDEN]


def frames_of(message: Message) -> list[bytes]:
    encoded = message.encode(RUN)
    return [encoded] if isinstance(encoded, bytes) else [bytes(frame) for frame in encoded]


@pytest.mark.parametrize(("message", "frames"), GOLDEN, ids=IDS)
def test_encode_gives_the_documented_bytes(message: Message, frames: list[str]) -> None:
    assert [frame.hex() for frame in frames_of(message)] == frames


@pytest.mark.parametrize(("message", "frames"), GOLDEN, ids=IDS)
def test_decode_reads_the_documented_bytes(message: Message, frames: list[str]) -> None:
    given_frames = [bytes.fromhex(frame) for frame in frames]
    assert decode(given_frames, max_total_bytes=LIMIT) == (RUN, message)


def test_golden_vectors_cover_every_kind() -> None:
    assert {message.kind for message, _ in GOLDEN} == set(Kind)


natural = st.integers(0, (1 << 63) - 1)
origins = st.integers(1, (1 << 63) - 1)
sequences = st.integers(0, (1 << 32) - 1)
hashes = st.integers(0, (1 << 64) - 1)
short = st.text(max_size=128)
endpoints = st.from_regex(r"tcp://[a-z0-9.]{1,20}:[0-9]{1,5}", fullmatch=True)
members = st.builds(
    Member,
    st.text(min_size=1, max_size=64),
    origins,
    endpoints,
    sequences,
    sequences,
    st.sampled_from(Status),
    hashes,
)
some_members = st.lists(members, max_size=5)
controls = st.one_of(
    st.builds(Hello, members, hashes, st.integers(0, 1), short, st.text(max_size=1024)),
    st.builds(
        Welcome, origins, hashes, natural, some_members, short, st.dictionaries(short, short)
    ),
    st.builds(
        Clock, st.dictionaries(origins, sequences), hashes, st.booleans(), natural, natural, natural
    ),
    st.builds(Members, some_members),
    st.builds(Graft, origins, sequences, sequences),
    st.builds(Prune, origins),
    st.builds(Credit, hashes, natural),
    st.builds(StateRequest, st.integers(1, (1 << 32) - 1), short),
    st.builds(Error, st.sampled_from(ErrorCode), st.text(max_size=1024)),
)


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    """The last piece of a payload: short ones suffice to reach every field."""
    payload = draw(st.binary(max_size=64))
    before = draw(st.integers(0, 1 << 20)) if payload else 0
    offset = before * CHUNK_BYTES
    return Chunk(
        kind=draw(st.sampled_from([Kind.UPDATE, Kind.STATE])),
        origin=draw(origins),
        seq=draw(st.integers(1, (1 << 32) - 1)),
        shares=draw(st.integers(1, (1 << 32) - 1)),
        step=draw(hashes),
        codec=draw(sequences),
        age_microseconds=draw(hashes),
        total=offset + len(payload),
        offset=offset,
        position=draw(st.integers(len(payload), (1 << 64) - 1)),
        payload=payload,
    )


@given(message=st.one_of(controls, chunks()), run=hashes)
def test_decode_inverts_encode(message: Message, run: int) -> None:
    encoded = message.encode(run)
    frames = [encoded] if isinstance(encoded, bytes) else list(encoded)
    assert decode(frames, max_total_bytes=1 << 64) == (run, message)


@given(message=st.one_of(controls, chunks()))
def test_decode_reads_borrowed_buffers(message: Message) -> None:
    borrowed = [memoryview(frame) for frame in frames_of(message)]
    assert decode(borrowed, max_total_bytes=1 << 64) == (RUN, message)


@pytest.mark.parametrize("length", [1, CHUNK_BYTES - 1, CHUNK_BYTES])
def test_decode_takes_the_first_piece_of_any_length(length: int) -> None:
    payload = os.urandom(length)
    chunk = Chunk(Kind.UPDATE, 5, 1, 2, 0, 0, 0, length, 0, length, payload)
    assert decode(frames_of(chunk), max_total_bytes=LIMIT) == (RUN, chunk)


@pytest.mark.parametrize(("message", "_"), GOLDEN, ids=IDS)
def test_decode_refuses_every_truncation(message: Message, _: list[str]) -> None:
    frames = frames_of(message)
    for i, frame in enumerate(frames):
        for length in range(len(frame)):
            cut = [*frames[:i], frame[:length], *frames[i + 1 :]]
            with pytest.raises(ProtocolError):
                decode(cut, max_total_bytes=LIMIT)
        with pytest.raises(ProtocolError):
            decode(frames[:i], max_total_bytes=LIMIT)
    with pytest.raises(ProtocolError):
        decode([*frames, b""], max_total_bytes=LIMIT)


@pytest.mark.parametrize(("message", "_"), GOLDEN, ids=IDS)
def test_decode_refuses_every_changed_byte(message: Message, _: list[str]) -> None:
    frames = frames_of(message)
    for i, frame in enumerate(frames):
        for at in range(len(frame)):
            for change in [*(1 << bit for bit in range(8)), 0xFF, 0x07, 0x0F]:
                damaged = bytearray(frame)
                damaged[at] ^= change
                with pytest.raises(ProtocolError):
                    decode([*frames[:i], bytes(damaged), *frames[i + 1 :]], max_total_bytes=LIMIT)


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_decode_refuses_random_frames(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        decode(list(frames), max_total_bytes=LIMIT)


def sealed(kind: int, body: bytes, *, header: bytes = b"") -> bytes:
    """A first frame whose magic, version and checksum are right, whatever the body."""
    first = struct.pack("<4sBBHQ", b"GSMR", 1, kind, 0, RUN)
    checksum = xxh3_64_intdigest(body, seed=xxh3_64_intdigest(first + header))
    return first + struct.pack("<Q", checksum) + header


@given(kind=st.integers(0, 255), body=st.binary(max_size=300))
def test_decode_refuses_or_reads_random_bodies_with_a_right_checksum(
    kind: int, body: bytes
) -> None:
    try:
        run, message = decode([sealed(kind, body) + body], max_total_bytes=LIMIT)
    except ProtocolError:
        return
    assert run == RUN
    assert message.kind == kind


@given(st.binary(min_size=64, max_size=64), st.binary(max_size=64))
def test_decode_refuses_or_reads_random_chunk_headers_with_a_right_checksum(
    header: bytes, payload: bytes
) -> None:
    try:
        _, chunk = decode(
            [sealed(Kind.UPDATE, payload, header=header), payload], max_total_bytes=LIMIT
        )
    except ProtocolError:
        return
    assert isinstance(chunk, Chunk)
    assert chunk.offset + len(payload) <= chunk.total <= LIMIT


@pytest.mark.parametrize(
    "nesting", [b"\x91" * 100_000, b"\x81\x01" * 50_000], ids=["arrays", "maps"]
)
def test_decode_refuses_deep_nesting(nesting: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode([sealed(Kind.MEMBERS, nesting) + nesting], max_total_bytes=LIMIT)


@pytest.mark.parametrize(
    "fields",
    [
        {"total": 0, "offset": CHUNK_BYTES},
        {"total": 3, "offset": 1},
        {"total": 4},
        {"total": 2},
        {"total": CHUNK_BYTES, "offset": CHUNK_BYTES},
        {"offset": (1 << 64) - 1},
        {"origin": 0},
        {"origin": 1 << 63},
        {"seq": 0},
        {"shares": 0},
        {"position": 2},
    ],
    ids=str,
)
def test_decode_refuses_contradictory_chunks(fields: dict[str, int]) -> None:
    payload = b"" if fields.get("offset") == CHUNK_BYTES else b"abc"
    values = {
        "kind": Kind.UPDATE,
        "origin": 5,
        "seq": 1,
        "shares": 1,
        "step": 0,
        "codec": 0,
        "age_microseconds": 0,
        "total": 3,
        "offset": 0,
        "position": 3,
        "payload": payload,
    }
    good = Chunk(**{**values, "payload": b"abc"})  # type: ignore[arg-type]
    assert decode(frames_of(good), max_total_bytes=LIMIT) == (RUN, good)
    bad = Chunk(**{**values, **fields})  # type: ignore[arg-type]
    with pytest.raises(ProtocolError):
        decode(frames_of(bad), max_total_bytes=LIMIT)


def test_decode_refuses_a_reserved_field() -> None:
    header = struct.pack("<QIIQIIQQQQ", 5, 1, 1, 0, 0, 1, 0, 3, 0, 3)
    with pytest.raises(ProtocolError):
        decode([sealed(Kind.UPDATE, b"abc", header=header), b"abc"], max_total_bytes=LIMIT)


@pytest.mark.parametrize("kind", [Kind.UPDATE, Kind.STATE])
def test_decode_refuses_oversize_totals_without_allocating(kind: Kind) -> None:
    total = (1 << 40) + 5
    frames = frames_of(Chunk(kind, 5, 1, 1, 0, 0, 0, total, 1 << 40, 5, b"abcde"))
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match=f"{total} bytes, the limit is 1024"):
            decode(list(frames), max_total_bytes=1024)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()
    assert decode(list(frames), max_total_bytes=total)[0] == RUN


def test_decode_refuses_control_beyond_the_limit() -> None:
    body = msgspec.msgpack.encode([[MEMBER] * 5000])
    with pytest.raises(ProtocolError, match="MEMBERS of 1 frames"):
        decode([sealed(Kind.MEMBERS, body) + body], max_total_bytes=LIMIT)
    tiny = Members([Member("p", 1, "tcp://a:1", 0, 0, Status.TRAINING)] * (MAX_MEMBERS + 1))
    assert len(tiny.encode(RUN)) < MAX_CONTROL_BYTES
    with pytest.raises(ProtocolError, match="length"):
        decode([tiny.encode(RUN)], max_total_bytes=LIMIT)


def test_members_of_the_greatest_length_fit_a_message() -> None:
    greatest = (1 << 32) - 1
    endpoint = "tcp://".ljust(128, "e")
    row = Member("p" * 64, (1 << 63) - 1, endpoint, greatest, greatest, Status.DEAD, (1 << 64) - 1)
    table = Members([row] * MAX_MEMBERS)
    assert decode([table.encode(RUN)], max_total_bytes=0) == (RUN, table)


@pytest.mark.parametrize(
    "change",
    [
        {"peer": ""},
        {"peer": "p" * 65},
        {"endpoint": "tcp://".ljust(129, "e")},
        {"endpoint": "ipc:///tmp/socket"},
        {"endpoint": "tcp://127.0.0.1:1 tcp://127.0.0.1:2"},
        {"origin": 0},
        {"origin": 1 << 63},
        {"incarnation": 1 << 32},
        {"version": -1},
        {"status": 6},
        {"final": -1},
    ],
    ids=str,
)
def test_decode_refuses_members_beyond_their_limits(change: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        decode(
            [Members([msgspec.structs.replace(MEMBER, **change)]).encode(RUN)], max_total_bytes=0
        )


def test_decode_refuses_other_versions_and_flags() -> None:
    frame = bytearray(Prune(5).encode(RUN))
    frame[4] = 2
    with pytest.raises(ProtocolError, match="version 2, this peer speaks 1"):
        decode([bytes(frame)], max_total_bytes=0)
    frame[4], frame[6] = 1, 1
    with pytest.raises(ProtocolError, match="flags"):
        decode([bytes(frame)], max_total_bytes=0)


def test_decode_survives_many_damaged_messages() -> None:
    rng = random.Random(1)
    for _ in range(20_000):
        frames = frames_of(rng.choice(GOLDEN)[0])
        i = rng.randrange(len(frames))
        damaged = bytearray(frames[i])
        for _ in range(rng.randrange(1, 5)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        if bytes(damaged) == frames[i]:
            continue
        with pytest.raises(ProtocolError):
            decode([*frames[:i], bytes(damaged), *frames[i + 1 :]], max_total_bytes=LIMIT)
