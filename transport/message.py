"""Every message on the wire: its layout, its limits, its checks.

A message begins with the same 24 bytes, little-endian:

    offset | bytes | field
    0      | 4     | magic "GSMR"
    4      | 1     | protocol version
    5      | 1     | kind
    6      | 2     | flags, zero
    8      | 8     | run: xxh3-64 of the run's name; 0 in a Hello that does not know it yet
    16     | 8     | checksum: xxh3-64 of what follows, seeded with that of the 16 bytes before

Control messages follow with a msgpack array in the same frame. A chunk (of an update, or of a
state transfer) follows with its own fixed header, which belongs to the seed of the checksum, and
puts its piece of the payload into a second, last frame. All pieces but the last of a payload are
CHUNK_BYTES long, so a piece lies at a multiple of CHUNK_BYTES:

    offset | bytes | field
    24     | 8     | origin: the peer that made the update; of a state, the peer that serves it
    32     | 4     | seq: 1, 2, 3, ... per origin; of a state, the token of the request
    36     | 4     | shares: how many peers share the update; its weight is 1/shares
    40     | 8     | step of the origin when it made the update
    48     | 4     | codec: number of the payload's format; its meaning is the engine's
    52     | 4     | reserved, zero
    56     | 8     | age in microseconds: time since the update was made, hop by hop
    64     | 8     | total: bytes of the whole payload
    72     | 8     | offset of this chunk in the payload
    80     | 8     | position: data bytes sent on this link so far, this chunk included

Decoding raises ProtocolError and nothing else, and checks every length before it allocates.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta
from xxhash import xxh3_64_intdigest

from gossamer.transport.errors import ProtocolError

MAGIC = b"GSMR"
VERSION = 1
MAX_CONTROL_BYTES = 1 << 18
# So many rows of the greatest length fit MAX_CONTROL_BYTES.
MAX_MEMBERS = 1024
CHUNK_BYTES = 256 * 1024
SEED = struct.Struct("<4sBBHQ")
PREFIX = struct.Struct("<4sBBHQQ")
CHUNK = struct.Struct("<QIIQIIQQQQ")
CHUNK_HEADER_BYTES = PREFIX.size + CHUNK.size

Buffer = bytes | bytearray | memoryview


class Kind(IntEnum):
    HELLO = 1
    WELCOME = 2
    UPDATE = 3
    STATE = 4
    CLOCK = 5
    MEMBERS = 6
    GRAFT = 7
    PRUNE = 8
    CREDIT = 9
    STATE_REQUEST = 10
    ERROR = 11


class Status(IntEnum):
    """What a member of the run is doing. LEFT and DEAD are final for one incarnation."""

    JOINING = 0
    TRAINING = 1
    DONE = 2
    COMPLETE = 3
    LEFT = 4
    DEAD = 5


Origin = Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
Natural = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Sequence = Annotated[int, Meta(ge=0, lt=1 << 32)]
Hash = Annotated[int, Meta(ge=0)]
ShortText = Annotated[str, Meta(max_length=128)]
Description = Annotated[str, Meta(max_length=1024)]
Endpoint = Annotated[str, Meta(max_length=128, pattern=r"^tcp://\S+$")]
LongText = Annotated[str, Meta(max_length=4096)]


class Member(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One row of the membership table; the row with the higher rank wins a merge."""

    peer: Annotated[str, Meta(min_length=1, max_length=64)]
    origin: Origin
    endpoint: Endpoint
    incarnation: Sequence  # raised by the member itself, to refute its death
    version: Sequence  # raised by the member itself with each change of status
    status: Status
    final: Hash = 0  # hash of the vector clock, once COMPLETE

    @property
    def alive(self) -> bool:
        return self.status < Status.LEFT

    @property
    def rank(self) -> tuple[int, bool, int, int, int, str, str]:
        # The first three decide. The others order rows that only a faulty peer could make differ.
        return (
            self.incarnation,
            not self.alive,
            self.version,
            self.status,
            self.final,
            self.endpoint,
            self.peer,
        )


class Control(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A message of one frame: header, then the fields as a msgpack array."""

    kind: ClassVar[Kind]

    def encode(self, run: int) -> bytes:
        body = msgspec.msgpack.encode(self)
        return _prefix(self.kind, run, b"", body) + body


class Hello(Control, frozen=True):
    """First message on each of a link's two sockets: who I am, and what I train."""

    kind: ClassVar = Kind.HELLO
    member: Member
    session: Hash  # names this link until it is reset
    channel: Annotated[int, Meta(ge=0, le=1)]  # 0 control, 1 data
    signature: ShortText  # of the model: names, shapes, dtypes
    description: Description  # of the model, for the sentence that a mismatch gets


class Welcome(Control, frozen=True):
    """The answer to a Hello on the control channel."""

    kind: ClassVar = Kind.WELCOME
    origin: Origin  # of the sender
    session: Hash
    granted: Natural  # data bytes that the link may send, in total
    members: Annotated[list[Member], Meta(max_length=MAX_MEMBERS)]
    run: ShortText
    settings: dict[ShortText, ShortText]


class Clock(Control, frozen=True):
    """Heartbeat, acknowledgement and advertisement in one: what I have received of every origin."""

    kind: ClassVar = Kind.CLOCK
    received: dict[Origin, Sequence]
    members: Hash  # digest of the membership table
    wanted: bool  # this link is one of the sender's edges
    sent: Natural  # sender's clock, microseconds
    echo: Natural  # the last `sent` that arrived from the receiver, or 0
    held: Natural  # microseconds between that arrival and now


class Members(Control, frozen=True):
    """The whole membership table; sent where the digests differ, and when a peer leaves."""

    kind: ClassVar = Kind.MEMBERS
    members: Annotated[list[Member], Meta(max_length=MAX_MEMBERS)]


class Graft(Control, frozen=True):
    """Send me this origin's updates from now on, and resend [first, last]."""

    kind: ClassVar = Kind.GRAFT
    origin: Origin
    first: Sequence
    last: Sequence


class Prune(Control, frozen=True):
    """Stop sending me this origin's updates: I get them from another peer."""

    kind: ClassVar = Kind.PRUNE
    origin: Origin


class Credit(Control, frozen=True):
    """The link may send this many data bytes in total; cumulative, so that repeats do no harm."""

    kind: ClassVar = Kind.CREDIT
    session: Hash
    granted: Natural


class StateRequest(Control, frozen=True):
    """Send me the shared base, its clock, and what else a new peer needs."""

    kind: ClassVar = Kind.STATE_REQUEST
    token: Annotated[int, Meta(ge=1, lt=1 << 32)]
    have: ShortText = ""  # digest of what I hold: the same need not be sent


class ErrorCode(IntEnum):
    UNKNOWN_SESSION = 1  # say Hello again
    REFUSED = 2  # we do not fit: another run, another model
    GONE = 3  # what you asked for has left the log: fetch the state


class Error(Control, frozen=True):
    """Something the receiver must know; the text is for people."""

    kind: ClassVar = Kind.ERROR
    code: ErrorCode
    text: LongText


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an update or of a state. The payload is borrowed until the socket has sent it."""

    kind: Kind
    origin: int
    seq: int
    shares: int
    step: int
    codec: int
    age_microseconds: int
    total: int
    offset: int
    position: int
    payload: Buffer

    def encode(self, run: int) -> tuple[bytes, Buffer]:
        body = CHUNK.pack(
            self.origin,
            self.seq,
            self.shares,
            self.step,
            self.codec,
            0,
            self.age_microseconds,
            self.total,
            self.offset,
            self.position,
        )
        return _prefix(self.kind, run, body, self.payload) + body, self.payload


_CONTROL: dict[int, type[Control]] = {
    cls.kind: cls
    for cls in (Hello, Welcome, Clock, Members, Graft, Prune, Credit, StateRequest, Error)
}
_DECODERS = {kind: msgspec.msgpack.Decoder(cls) for kind, cls in _CONTROL.items()}


def with_status(member: Member, status: Status, final: int = 0) -> Member:
    """The member's own next row."""
    return msgspec.structs.replace(member, status=status, final=final, version=member.version + 1)


def decode(frames: list[Buffer], *, max_total_bytes: int) -> tuple[int, Control | Chunk]:
    """Read one message.

    frames:          one frame for control, two for a chunk
    max_total_bytes: no payload of this run is larger
    returns:         (run, message)
    Raises ProtocolError on anything else; the text says what was wrong.
    """
    if not frames or len(frames[0]) < PREFIX.size:
        raise ProtocolError(f"message of {sum(map(len, frames))} bytes has no header")
    head = frames[0]
    magic, version, kind, flags, run, checksum = PREFIX.unpack_from(head)
    if magic != MAGIC:
        raise ProtocolError(f"message begins with {bytes(magic)!r}, not {MAGIC!r}")
    if version != VERSION:
        raise ProtocolError(f"protocol version {version}, this peer speaks {VERSION}")
    if flags:
        raise ProtocolError(f"unknown flags {flags:#x}")
    if kind in (Kind.UPDATE, Kind.STATE):
        return run, _decode_chunk(Kind(kind), frames, checksum, max_total_bytes)
    if kind not in _DECODERS:
        raise ProtocolError(f"unknown message kind {kind}")
    if len(frames) != 1 or len(head) > MAX_CONTROL_BYTES:
        raise ProtocolError(f"{Kind(kind).name} of {len(frames)} frames, {len(head)} bytes")
    body = memoryview(head)[PREFIX.size :]
    if _checksum(memoryview(head)[: SEED.size], b"", body) != checksum:
        raise ProtocolError(f"{Kind(kind).name} with a wrong checksum")
    try:
        return run, _DECODERS[kind].decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"{Kind(kind).name}: {error}") from None


def _decode_chunk(kind: Kind, frames: list[Buffer], checksum: int, max_total_bytes: int) -> Chunk:
    if len(frames) != 2 or len(frames[0]) != CHUNK_HEADER_BYTES:
        raise ProtocolError(f"{kind.name} of {len(frames)} frames, header {len(frames[0])} bytes")
    head, payload = memoryview(frames[0])[PREFIX.size :], frames[1]
    origin, seq, shares, step, codec, reserved, age, total, offset, position = CHUNK.unpack(head)
    if total > max_total_bytes:
        raise ProtocolError(f"{kind.name} of {total} bytes, the limit is {max_total_bytes}")
    whole = len(payload) == min(CHUNK_BYTES, total - offset)
    if not whole or offset % CHUNK_BYTES or (total and not len(payload)):
        raise ProtocolError(f"{kind.name} chunk [{offset}, +{len(payload)}) of {total} bytes")
    if not 0 < origin < 1 << 63 or not seq or not shares or reserved:
        raise ProtocolError(f"{kind.name} with origin {origin}, seq {seq}, shares {shares}")
    if position < len(payload):
        raise ProtocolError(f"{kind.name} at position {position} with {len(payload)} bytes")
    if _checksum(memoryview(frames[0])[: SEED.size], head, payload) != checksum:
        raise ProtocolError(f"{kind.name} {origin:x}/{seq} with a wrong checksum")
    return Chunk(kind, origin, seq, shares, step, codec, age, total, offset, position, payload)


def _prefix(kind: Kind, run: int, head: Buffer, body: Buffer) -> bytes:
    seed = SEED.pack(MAGIC, VERSION, kind, 0, run)
    return PREFIX.pack(MAGIC, VERSION, kind, 0, run, _checksum(seed, head, body))


def _checksum(prefix: Buffer, head: Buffer, body: Buffer) -> int:
    return xxh3_64_intdigest(body, seed=xxh3_64_intdigest(bytes(prefix) + bytes(head)))


__all__ = [
    "CHUNK_BYTES",
    "Chunk",
    "Clock",
    "Control",
    "Credit",
    "Error",
    "ErrorCode",
    "Graft",
    "Hello",
    "Kind",
    "Member",
    "Members",
    "Prune",
    "StateRequest",
    "Status",
    "Welcome",
    "decode",
    "with_status",
]
