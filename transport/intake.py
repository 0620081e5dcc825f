"""Payloads that come in as chunks: the neighbours' updates, and the state that was asked for.

An update may come by several neighbours. The first copy is taken, and who begins another is told
to stop; while one copy is on its way, chunks of another still help it along.
"""

from gossamer.transport.assembly import Assembly
from gossamer.transport.broadcast import Broadcast, Update
from gossamer.transport.errors import ProtocolError
from gossamer.transport.events import StateArrived
from gossamer.transport.link import STALL_SECONDS
from gossamer.transport.message import Chunk, Kind


class Intake:
    """What one peer has received in part.

    origin:    this peer
    broadcast: takes the updates that are whole
    """

    def __init__(self, origin: int, broadcast: Broadcast) -> None:
        self._origin, self._broadcast = origin, broadcast
        self._assembly = Assembly()
        self._awaited: tuple[int, int] | None = None  # who was asked for a state; its token
        self._token = 0  # of the latest request

    def wants_state(self, token: int, since: float) -> bool:
        """Note the latest request for a state; returns False where one has been arriving lately."""
        self._token = token
        return self._awaited is None or not self._assembly.arriving(Kind.STATE, since)

    def await_state(self, source: int, token: int) -> None:
        """A neighbour was asked: its state is taken, and nobody else's."""
        self._awaited = (source, token)

    def add_state(self, chunk: Chunk, via: int, now: float) -> StateArrived | None:
        """Take in a chunk of a state; returns the state when it is complete."""
        if self._awaited != (via, chunk.seq):
            return None
        state = self._assembly.add(chunk, via, now)
        if state is None:
            return None
        self._awaited = None
        return StateArrived(self._token, state)

    def add_update(self, chunk: Chunk, via: int, now: float, delay: float) -> list[Update]:
        """Take in a chunk of an update; returns what can be applied now, in order.

        delay: seconds that the chunk was on its way
        Raises ProtocolError when the update claims to be this peer's own, or a chunk contradicts
        the others.
        """
        origin, seq = chunk.origin, chunk.seq
        if origin == self._origin:
            raise ProtocolError("an update in the name of the peer that received it")
        known = self._broadcast.has(origin, seq)
        if known or self._assembly.other_source(chunk, via, now - STALL_SECONDS):
            if chunk.offset == 0:
                self._broadcast.refuse_duplicate(origin, via)
            if known:
                return []
        self._broadcast.progress(origin, seq, now)
        payload = self._assembly.add(chunk, via, now)
        if payload is None:
            return []
        produced = now - chunk.age_microseconds * 1e-6 - delay
        update = Update(origin, seq, chunk.step, chunk.shares, chunk.codec, produced, payload)
        return self._broadcast.offer(update, via, now)

    def expire(self, before: float) -> None:
        """Forget what has not grown since then."""
        self._assembly.expire(before)
