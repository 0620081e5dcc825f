"""Who is in the run: a table of members that converges on every peer.

Each row belongs to one peer, which alone raises its version. Rows are merged by rank
(incarnation, then final states over living ones, then version), a total order, so the table is a
join-semilattice: any order of merging gives the same table everywhere. A neighbour that was
silent for `peer_timeout` is marked DEAD; a peer that reads of its own death refutes it with a
higher incarnation (SWIM, Das et al. 2002, section 4.2). No sockets, no threads, no clock of its
own: the caller passes `now` in seconds.
"""

from collections.abc import Iterable

import msgspec
from xxhash import xxh3_64_intdigest

from gossamer.transport.message import MAX_MEMBERS, Member, Status, with_status

MAX_INCARNATION = (1 << 32) - 1


class Membership:
    """The table of one peer.

    own:          this peer's row
    peer_timeout: seconds of silence after which a neighbour is dead
    """

    def __init__(self, own: Member, *, peer_timeout: float) -> None:
        self._origin = own.origin
        self._rows = {own.origin: own}
        self._heard: dict[int, float] = {}
        self._peer_timeout = peer_timeout
        self._digest: int | None = None

    @property
    def own(self) -> Member:
        return self._rows[self._origin]

    def rows(self) -> list[Member]:
        """All members ever seen, in the order of their ids."""
        return sorted(self._rows.values(), key=lambda row: (_natural(row.peer), row.origin))

    def living(self) -> list[Member]:
        return [row for row in self.rows() if row.alive]

    def get(self, origin: int) -> Member | None:
        return self._rows.get(origin)

    def alive(self, origin: int) -> bool:
        row = self._rows.get(origin)
        return row is not None and row.alive

    @property
    def digest(self) -> int:
        """Equal on two peers whose tables are equal."""
        if self._digest is None:
            rows = sorted(self._rows.values(), key=lambda row: row.origin)
            self._digest = xxh3_64_intdigest(msgspec.msgpack.encode(rows))
        return self._digest

    def set_status(self, status: Status, final: int = 0) -> bool:
        """Change the own row; returns False where nothing changes."""
        own = self.own
        if (own.status, own.final) == (status, final):
            return False
        self._put(with_status(own, status, final))
        return True

    def merge(self, rows: Iterable[Member]) -> list[Member]:
        """Take in another table; returns the rows that are news."""
        news = []
        for row in rows:
            known = self._rows.get(row.origin)
            if known is not None and row.rank <= known.rank:
                continue
            if known is None and len(self._rows) >= MAX_MEMBERS:
                continue
            new = self._refute(row) if row.origin == self._origin else row
            if new is not None:
                self._put(new)
                news.append(new)
        return news

    def heard(self, origin: int, now: float) -> None:
        """Any message of this neighbour is a sign of life."""
        self._heard[origin] = now

    def forgive(self, seconds: float) -> None:
        """This peer itself stood still for so long: nobody else is to blame for the silence."""
        for origin in self._heard:
            self._heard[origin] += seconds

    def watch(self, origins: Iterable[int], now: float) -> list[Member]:
        """Mark neighbours dead that were silent too long; returns their new rows.

        Who was not among them in the last call, or was not alive, is heard of as of now.
        """
        watched = [origin for origin in origins if self.alive(origin)]
        self._heard = {origin: self._heard.get(origin, now) for origin in watched}
        dead = []
        for origin, heard in list(self._heard.items()):
            if now - heard > self._peer_timeout:
                del self._heard[origin]
                row = self._rows[origin]
                row = msgspec.structs.replace(row, status=Status.DEAD)
                self._put(row)
                dead.append(row)
        return dead

    def _refute(self, row: Member) -> Member | None:
        own = self.own
        if own.status is Status.LEFT or row.incarnation >= MAX_INCARNATION:
            return None
        return msgspec.structs.replace(
            own, incarnation=row.incarnation + 1, version=own.version + 1
        )

    def _put(self, row: Member) -> None:
        self._rows[row.origin] = row
        self._digest = None


def _natural(peer: str) -> tuple[str, int, str]:
    """Sort key under which peer-2 comes before peer-10."""
    stem = peer.rstrip("0123456789")
    digits = peer[len(stem) :]
    return (stem, int(digits) if digits else -1, peer)
