"""Exactly-once broadcast of numbered updates over a connected overlay.

Every origin numbers its updates 1, 2, 3, ... and each peer takes each update once, per origin in
order.

- Push: an update travels along a breadth-first tree rooted at its origin. All peers derive the
  same trees from the same membership list, so nothing is sent twice while the lists agree.
- Repair: every peer tells its neighbours its vector clock (the highest number received without a
  gap, per origin). Who hears of an update that does not come within a deadline grafts: the
  neighbour resends from its log and pushes that origin from then on. Who gets a duplicate prunes
  the edge it came by. This is Plumtree (Leitao et al. 2007) with derived trees instead of an
  initial flood.
- The log is bounded in bytes; what a peer misses beyond it must come with a state transfer.

No sockets, no threads, no clock of its own: the caller passes `now` in seconds and the callbacks
that send.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from gossamer.transport.message import Buffer

FIRST_GRAFT_DELAY_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Update:
    """One update of one origin. The payload is never written to again."""

    origin: int
    seq: int
    step: int
    shares: int
    codec: int
    produced: float  # seconds, on the clock of this peer
    payload: Buffer


class Gone(Exception):
    """The log no longer reaches back as far as was asked."""


class Broadcast:
    """The broadcast state of one peer.

    origin:    this peer
    send:      send(peer, update): queue an update for a neighbour
    graft:     graft(peer, origin, first, last): ask a neighbour
    prune:     prune(peer, origin): tell a neighbour
    log_bytes: how much is kept for resending, and how much is held while an earlier one is missing
    max_delay: seconds, the longest wait before a graft
    """

    def __init__(
        self,
        origin: int,
        *,
        send: Callable[[int, Update], None],
        graft: Callable[[int, int, int, int], None],
        prune: Callable[[int, int], None],
        log_bytes: int,
        max_delay: float,
    ) -> None:
        self.origin = origin
        self.received: dict[int, int] = {}
        # False until the state has come: updates are held, nothing is asked for.
        self.active = False
        self.duplicates = 0
        self._send, self._graft, self._prune = send, graft, prune
        self._log: OrderedDict[tuple[int, int], Update] = OrderedDict()
        self._log_bytes, self._log_limit = 0, log_bytes
        self._held: dict[int, dict[int, Update]] = {}
        self._held_bytes = 0
        self._children: dict[int, set[int]] = {}
        self._links: set[int] = set()
        self._clocks: dict[int, Mapping[int, int]] = {}
        self._missing_since: dict[int, float] = {}
        self._lateness: dict[int, float] = {}
        self._max_delay = max_delay

    # -- the overlay

    def set_overlay(self, graph: Mapping[int, set[int]], order: list[int]) -> None:
        """Derive every origin's tree again.

        graph: neighbours of each living member
        order: the living members in the order that all peers agree on
        """
        self._children = {
            root: broadcast_children(graph, order, root, self.origin) for root in order
        }

    def link_up(self, peer: int) -> None:
        self._links.add(peer)

    def link_down(self, peer: int) -> None:
        self._links.discard(peer)
        self._clocks.pop(peer, None)

    # -- updates

    def publish(self, update: Update) -> None:
        """Take in an own update, whose number must be the next one, and push it."""
        if update.seq != self.received.get(self.origin, 0) + 1:
            raise ValueError(f"update {update.seq} after {self.received.get(self.origin, 0)}")
        self.received[self.origin] = update.seq
        self._store(update)
        self._push(update, via=None)

    def has(self, origin: int, seq: int) -> bool:
        return seq <= self.received.get(origin, 0) or seq in self._held.get(origin, ())

    def refuse_duplicate(self, origin: int, via: int) -> None:
        """A neighbour began to send what is here already."""
        self.duplicates += 1
        self._prune(via, origin)

    def offer(self, update: Update, via: int, now: float) -> list[Update]:
        """Take in an update from a neighbour; returns what can be applied now, in order."""
        origin, seq = update.origin, update.seq
        if self.has(origin, seq):
            return []
        held = self._held.setdefault(origin, {})
        is_next = self.active and seq == self.received.get(origin, 0) + 1
        if not is_next and self._held_bytes + len(update.payload) > self._log_limit:
            return []
        held[seq] = update
        self._held_bytes += len(update.payload)
        self._push(update, via=via)
        if not is_next:
            return []
        since = self._missing_since.pop(origin, None)
        if since is not None:
            late = now - since
            self._lateness[origin] = max(late, 0.9 * self._lateness.get(origin, 0.0))
        return self._release(origin)

    def adopt(self, clock: Mapping[int, int]) -> list[Update]:
        """Continue from a state whose vector clock this is; returns what follows it, in order.

        Updates that were received before and are newer than the state come again, from the log.
        Raises Gone when an own update is newer than the state and no longer in the log.
        """
        own = self.received.get(self.origin, 0)
        origins = {*self.received, *self._held, *clock}
        self.received, self.active = dict(clock), True
        self._missing_since.clear()
        ready = []
        for origin in sorted(origins):
            held = self._held.setdefault(origin, {})
            for seq in [seq for seq in held if seq <= self.received.get(origin, 0)]:
                self._held_bytes -= len(held.pop(seq).payload)
            while logged := self._log.get((origin, self.received.get(origin, 0) + 1)):
                self.received[origin] = logged.seq
                ready.append(logged)
            ready += self._release(origin)
        if self.received.get(self.origin, 0) < own:
            raise Gone
        return ready

    # -- repair

    def heard_clock(self, peer: int, clock: Mapping[int, int], now: float) -> None:
        """A neighbour's vector clock: it acknowledges what it has and advertises what we lack."""
        self._clocks[peer] = clock
        if not self.active:
            return
        for origin, seq in clock.items():
            if origin != self.origin and seq > self.received.get(origin, 0):
                self._missing_since.setdefault(origin, now)

    def progress(self, origin: int, seq: int, now: float) -> None:
        """A piece of an update arrived: if it is the next of its origin, that is on its way."""
        if origin in self._missing_since and seq == self.received.get(origin, 0) + 1:
            self._missing_since[origin] = now

    def tick(self, now: float) -> None:
        """Graft what was advertised and has not come."""
        for origin, since in list(self._missing_since.items()):
            first = self.received.get(origin, 0) + 1
            sources = [p for p in self._links if self._clocks.get(p, {}).get(origin, 0) >= first]
            if not sources:
                del self._missing_since[origin]
                continue
            delay = FIRST_GRAFT_DELAY_SECONDS + 3 * self._lateness.get(origin, 0.0)
            if now - since < min(delay, self._max_delay):
                continue
            held = self._held.get(origin)
            last = min(held) - 1 if held else (1 << 32) - 1
            source = max(sources, key=lambda p: (self._clocks[p][origin], -p))
            self._graft(source, origin, first, last)
            self._missing_since[origin] = now
            # Ask another source next time, if there is one.
            clock = dict(self._clocks[source])
            del clock[origin]
            self._clocks[source] = clock

    def grafted(self, peer: int, origin: int, first: int, last: int) -> None:
        """A neighbour lacks [first, last] of an origin. Raises Gone when the log is too short."""
        self._children.setdefault(origin, set()).add(peer)
        have, held = self.received.get(origin, 0), self._held.get(origin, {})
        if first <= have and (origin, first) not in self._log:
            raise Gone
        for seq in range(first, min(last, have) + 1):
            if (origin, seq) not in self._log:
                # A state transfer jumped over what follows: the neighbour will ask again.
                break
            self._send(peer, self._log[origin, seq])
        for seq in sorted(seq for seq in held if first <= seq <= last):
            self._send(peer, held[seq])

    def pruned(self, peer: int, origin: int) -> None:
        """A neighbour gets this origin from elsewhere."""
        self._children.get(origin, set()).discard(peer)

    def acknowledged(self, peer: int, update: Update) -> bool:
        """Whether a neighbour's clock covers an update."""
        return self._clocks.get(peer, {}).get(update.origin, 0) >= update.seq

    # -- inside

    def children(self, origin: int) -> set[int]:
        """The neighbours to whom this peer pushes an origin's updates."""
        return self._children.get(origin, set()) & self._links

    def _push(self, update: Update, via: int | None) -> None:
        for peer in sorted(self.children(update.origin)):
            if peer not in (via, update.origin) and not self.acknowledged(peer, update):
                self._send(peer, update)

    def _release(self, origin: int) -> list[Update]:
        held: dict[int, Update] = self._held[origin]
        ready = []
        seq = self.received.get(origin, 0) + 1
        while seq in held:
            update = held.pop(seq)
            self._held_bytes -= len(update.payload)
            self.received[origin] = seq
            self._store(update)
            ready.append(update)
            seq += 1
        return ready

    def _store(self, update: Update) -> None:
        old = self._log.pop((update.origin, update.seq), None)
        self._log_bytes += len(update.payload) - (len(old.payload) if old is not None else 0)
        self._log[update.origin, update.seq] = update
        while self._log_bytes > self._log_limit and len(self._log) > 1:
            _, old = self._log.popitem(last=False)
            self._log_bytes -= len(old.payload)


def broadcast_children(
    graph: Mapping[int, set[int]], order: Iterable[int], root: int, peer: int
) -> set[int]:
    """The children of one peer in the breadth-first tree of a root.

    Among equally near parents the load is spread: each node, in the order of the list rotated to
    the root, takes the parent with the fewest children so far. Every peer that knows graph and
    order derives the same tree.
    """
    members = list(order)
    if root not in members:
        return set()
    start = members.index(root)
    rank = {m: (i - start) % len(members) for i, m in enumerate(members)}
    children: dict[int, set[int]] = {root: set()}
    level = [root]
    while level:
        reached: dict[int, list[int]] = {}
        for node in level:
            for neighbour in graph.get(node, ()):
                if neighbour not in children and neighbour in rank:
                    reached.setdefault(neighbour, []).append(node)
        level = sorted(reached, key=rank.__getitem__)
        for node in level:
            parent = min(reached[node], key=lambda p: (len(children[p]), rank[p]))
            children[parent].add(node)
        for node in level:
            children[node] = set()
    return children.get(peer, set())
