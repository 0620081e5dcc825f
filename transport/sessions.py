"""The receiving side of the neighbours' links.

A neighbour's Link greets by two connections, control and data, under one session number; what the
ROUTER knows of a sender is the routing id of its connection. A Session is what both have in
common: how much data came, how much was granted, what the last clock said.
"""

from dataclasses import dataclass

from gossamer.transport.errors import ProtocolError
from gossamer.transport.message import Chunk, Hello

CREDIT_WINDOW_BYTES = 4 * 1024 * 1024


@dataclass(slots=True)
class Session:
    """The receiving side of a neighbour's link."""

    origin: int
    session: int
    heard: float
    control: bytes | None = None  # routing ids of the two connections
    data: bytes | None = None
    wanted: bool = True
    position: int = 0
    granted: int = CREDIT_WINDOW_BYTES
    echo: int = 0  # the neighbour's clock in its last Clock message, and when that came
    echo_at: float = 0.0

    def advance(self, chunk: Chunk) -> None:
        """Count a chunk. Raises ProtocolError when it is not within the credit."""
        if not self.position + len(chunk.payload) <= chunk.position <= self.granted:
            raise ProtocolError(
                f"data at position {chunk.position}, after {self.position}; "
                f"{self.granted} bytes were granted"
            )
        self.position = chunk.position

    def credit_due(self) -> int | None:
        """The new grant, when it is worth a message."""
        granted = self.position + CREDIT_WINDOW_BYTES
        return granted if granted - self.granted >= CREDIT_WINDOW_BYTES // 4 else None


class Sessions:
    """The sessions of all neighbours, by the routing ids of their connections."""

    def __init__(self) -> None:
        self._by_routing: dict[bytes, tuple[Session, bool]] = {}

    def get(self, routing: bytes) -> tuple[Session | None, bool]:
        """The session of a connection, and whether the connection is its data channel."""
        return self._by_routing.get(routing, (None, False))

    def of(self, origin: int) -> Session | None:
        """The session of a neighbour."""
        return next((s for s, _ in self._by_routing.values() if s.origin == origin), None)

    def all(self) -> list[Session]:
        """Each session once, whether one of its connections has greeted or both."""
        return list({id(s): s for s, _ in self._by_routing.values()}.values())

    def wanting(self, since: float) -> set[int]:
        """The neighbours that want a link with this peer and were heard since then."""
        return {s.origin for s, _ in self._by_routing.values() if s.wanted and s.heard > since}

    def greeted(self, routing: bytes, hello: Hello, now: float) -> Session:
        """Take in a Hello; one with a new session number ends the older sessions of its peer."""
        session = self._session_of(hello, now)
        session.heard = now
        if hello.channel:
            session.data = routing
        else:
            session.control = routing
        self._by_routing[routing] = (session, bool(hello.channel))
        return session

    def expire(self, before: float) -> None:
        """Forget the sessions that were not heard since then."""
        for routing in [r for r, (s, _) in self._by_routing.items() if s.heard < before]:
            del self._by_routing[routing]

    def _session_of(self, hello: Hello, now: float) -> Session:
        origin = hello.member.origin
        for routing, (session, _) in list(self._by_routing.items()):
            if session.origin == origin:
                if session.session == hello.session:
                    return session
                del self._by_routing[routing]
        return Session(origin, hello.session, now)
