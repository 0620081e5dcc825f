"""Payloads being put together from chunks.

Chunks of one payload may come in any order and by several links; the first copy of each counts.
Memory is taken only for payloads whose size was checked, and only for so many at once.
"""

from dataclasses import dataclass

from gossamer.transport.errors import ProtocolError
from gossamer.transport.message import Chunk, Kind

# A link sends one payload after the other, so those left open beyond this were given up.
MAX_OPEN_PER_SOURCE = 4


@dataclass(slots=True)
class _Open:
    first: Chunk
    buffer: bytearray
    missing: int
    seen: set[int]
    sources: dict[int, float]

    def agrees(self, chunk: Chunk) -> bool:
        first = self.first
        return (chunk.total, chunk.shares, chunk.codec, chunk.step) == (
            first.total,
            first.shares,
            first.codec,
            first.step,
        )


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
            self._make_room(via)
            item = _Open(chunk, bytearray(chunk.total), chunk.total, set(), {})
            self._open[key] = item
        if not item.agrees(chunk):
            raise ProtocolError(f"chunks of {chunk.origin:x}/{chunk.seq} contradict each other")
        item.sources[via] = now
        if chunk.offset in item.seen:
            return None
        item.seen.add(chunk.offset)
        item.buffer[chunk.offset : chunk.offset + len(chunk.payload)] = chunk.payload
        item.missing -= len(chunk.payload)
        if item.missing:
            return None
        del self._open[key]
        return item.buffer

    def other_source(self, chunk: Chunk, via: int, since: float) -> bool:
        """Whether another neighbour has been sending the same payload lately."""
        item = self._open.get((chunk.kind, chunk.origin, chunk.seq))
        return item is not None and any(
            at >= since for source, at in item.sources.items() if source != via
        )

    def arriving(self, kind: Kind, since: float) -> bool:
        """Whether a payload of this kind has grown lately."""
        return any(
            key[0] is kind and max(item.sources.values()) >= since
            for key, item in self._open.items()
        )

    def expire(self, before: float) -> None:
        """Forget what has not grown since then: nobody completes it any more."""
        for key in [k for k, i in self._open.items() if max(i.sources.values()) < before]:
            del self._open[key]

    def _make_room(self, via: int) -> None:
        same = [key for key, item in self._open.items() if item.sources.keys() == {via}]
        if len(same) >= MAX_OPEN_PER_SOURCE:
            del self._open[same[0]]
