"""Payloads being put together from chunks.

Chunks of one payload may come in any order and by several links; the first copy of each counts.
Memory is taken only for payloads whose size was checked, and only for so many at once.
"""

from dataclasses import dataclass

from gossamer.transport.errors import ProtocolError
from gossamer.transport.message import Chunk, Kind

MAX_OPEN_PER_ORIGIN = 8


@dataclass(slots=True)
class _Open:
    first: Chunk
    buffer: bytearray
    missing: int
    seen: set[int]
    sources: dict[int, float]


class Assembly:
    """The open payloads of one peer."""

    def __init__(self) -> None:
        self._open: dict[tuple[Kind, int, int], _Open] = {}

    def add(self, chunk: Chunk, via: int, now: float) -> bytearray | None:
        """Take in a chunk; returns the payload when it is complete.

        Raises ProtocolError when the chunk contradicts the others of its payload.
        """
        key = (chunk.kind, chunk.origin, chunk.seq)
        item = self._open.get(key)
        if item is None:
            if len(chunk.payload) == chunk.total:
                return bytearray(chunk.payload)
            self._make_room(chunk.kind, chunk.origin)
            item = _Open(chunk, bytearray(chunk.total), chunk.total, set(), {})
            self._open[key] = item
        item.sources[via] = now
        first = item.first
        if (chunk.total, chunk.shares, chunk.codec, chunk.step) != (
            first.total,
            first.shares,
            first.codec,
            first.step,
        ):
            raise ProtocolError(f"chunks of {chunk.origin:x}/{chunk.seq} contradict each other")
        if chunk.offset in item.seen:
            return None
        item.seen.add(chunk.offset)
        item.buffer[chunk.offset : chunk.offset + len(chunk.payload)] = chunk.payload
        item.missing -= len(chunk.payload)
        if item.missing > 0:
            return None
        del self._open[key]
        if item.missing < 0:
            raise ProtocolError(f"chunks of {chunk.origin:x}/{chunk.seq} overlap")
        return item.buffer

    def other_source(self, chunk: Chunk, via: int, since: float) -> bool:
        """Whether another neighbour has been sending the same payload lately."""
        item = self._open.get((chunk.kind, chunk.origin, chunk.seq))
        return item is not None and any(
            at >= since for source, at in item.sources.items() if source != via
        )

    def drop_origin(self, origin: int) -> None:
        """Forget what a peer that is gone can no longer complete."""
        for key in [key for key in self._open if key[1] == origin]:
            del self._open[key]

    def _make_room(self, kind: Kind, origin: int) -> None:
        same = [key for key in self._open if key[:2] == (kind, origin)]
        if len(same) >= MAX_OPEN_PER_ORIGIN:
            del self._open[min(same)]
