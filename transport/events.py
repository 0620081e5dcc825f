"""What the training thread gets from its node, in the order in which it happened."""

from collections.abc import Mapping
from dataclasses import dataclass

from gossamer.transport.broadcast import Update
from gossamer.transport.message import Member


@dataclass(frozen=True, slots=True)
class Welcomed:
    """The peer that was joined let this one in; the state is still to be fetched."""

    run: str
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Refused:
    """The peer that was joined does not let this one in; the text is for people."""

    text: str


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """Another peer's row is new, or has another status."""

    member: Member


@dataclass(frozen=True, slots=True)
class StateRequested:
    """A neighbour asks for the state; `have` is the digest of what it holds already."""

    origin: int
    token: int
    have: str = ""


@dataclass(frozen=True, slots=True)
class StateArrived:
    """A neighbour's state, under the token of the latest request."""

    token: int
    payload: bytearray


@dataclass(frozen=True, slots=True)
class Desynchronized:
    """Updates were missed that no log holds any more: the state must be fetched again."""

    origin: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The I/O thread ended with this error; nothing follows."""

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
