"""A network on a virtual clock for the broadcast's state machine: delay, loss, cuts, death."""

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

from overlays import Graph

from gossamer.transport.broadcast import Broadcast, Gone, Update

TICK_SECONDS = 0.05
CLOCK_SECONDS = 0.2
DEATH_SECONDS = 5.0


@dataclass
class Faults:
    """What goes wrong, drawn anew for every message."""

    loss: float = 0.0
    duplication: float = 0.0
    delay: tuple[float, float] = (0.001, 0.02)
    until: float = float("inf")  # seconds; then the network is perfect


@dataclass
class VirtualPeer:
    """One peer with the engine's part of the contract: it applies in order, and adopts states."""

    broadcast: Broadcast
    applied: dict[int, int] = field(default_factory=dict)
    delivered: Counter[tuple[int, int]] = field(default_factory=Counter)
    adoptions: int = 0

    def apply(self, updates: list[Update]) -> None:
        for update in updates:
            if update.seq <= self.applied.get(update.origin, 0):
                assert self.adoptions, "an update was delivered twice"
                continue
            assert update.seq == self.applied.get(update.origin, 0) + 1, "out of order"
            assert bytes(update.payload) == payload_of(update.origin, update.seq)
            self.applied[update.origin] = update.seq
            self.delivered[update.origin, update.seq] += 1


def payload_of(origin: int, seq: int) -> bytes:
    return f"{origin}/{seq}".encode().ljust(100, b".")


class VirtualNetwork:
    """Peers 0, 1, 2, ... as origins 1, 2, 3, ... on a graph of their indices."""

    def __init__(
        self, graph: Graph, *, seed: int, faults: Faults | None = None, log_bytes: int = 1 << 20
    ) -> None:
        self.now = 0.0
        self.faults = faults or Faults()
        self.copies: Counter[tuple[int, int]] = Counter()
        self.sent: Counter[str] = Counter()
        self.cut: set[frozenset[int]] = set()
        self.dead: set[int] = set()
        self.lose: Callable[[str, int, int], bool] = lambda kind, source, target: False
        self._rng = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._log_bytes = log_bytes
        self.graph = {a + 1: {b + 1 for b in others} for a, others in graph.items()}
        self.peers: dict[int, VirtualPeer] = {}
        for origin in self.graph:
            self.add(origin)
            self.peers[origin].broadcast.adopt({})
        for origin in self.graph:
            self.derive(origin)

    # -- the peers

    def add(self, origin: int) -> None:
        broadcast = Broadcast(
            origin,
            send=lambda target, update: self._post("update", origin, target, update),
            graft=lambda target, *ask: self._post("graft", origin, target, *ask),
            prune=lambda target, of: self._post("prune", origin, target, of),
            log_bytes=self._log_bytes,
            max_delay=DEATH_SECONDS / 4,
        )
        self.peers[origin] = VirtualPeer(broadcast)
        self.after(self._rng.uniform(0, TICK_SECONDS), partial(self._tick, origin))
        self.after(self._rng.uniform(0, CLOCK_SECONDS), partial(self._clock, origin))

    def derive(self, origin: int) -> None:
        """Give a peer the overlay of the living."""
        living = {
            a: {b for b in others if b not in self.dead}
            for a, others in self.graph.items()
            if a not in self.dead
        }
        broadcast = self.peers[origin].broadcast
        broadcast.set_overlay(living, sorted(living))
        for peer in self.graph:
            if peer in living.get(origin, ()):
                broadcast.link_up(peer)
            else:
                broadcast.link_down(peer)

    def kill(self, origin: int) -> None:
        """End a peer at once; the others notice later, each at another moment.

        Its neighbours become each other's, as an overlay of fewer members stays connected.
        """
        self.dead.add(origin)
        heirs = sorted(self.graph[origin] - self.dead)
        for a, b in pairwise(heirs):
            self.graph[a].add(b)
            self.graph[b].add(a)
        for other in self.living():
            self.after(self._rng.uniform(1.0, DEATH_SECONDS), partial(self.derive, other))

    def living(self) -> list[int]:
        return [origin for origin in self.peers if origin not in self.dead]

    def publish(self, origin: int) -> None:
        if origin in self.dead:
            return
        peer = self.peers[origin]
        seq = peer.applied.get(origin, 0) + 1
        update = Update(origin, seq, seq, 1, 0, self.now, payload_of(origin, seq))
        peer.applied[origin] = seq
        peer.broadcast.publish(update)

    def fetch_state(self, origin: int, source: int) -> None:
        """A state transfer, which is reliable: the clock, then `adopt`."""
        peer, clock = self.peers[origin], dict(self.peers[source].applied)
        peer.applied = dict(clock)
        peer.adoptions += 1
        peer.apply(peer.broadcast.adopt(clock))

    # -- the clock

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + seconds, self._count, action))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.now = end

    def run_until_equal(self, limit: float) -> None:
        """Go on until all living peers have applied the same; fails after `limit` seconds."""
        end = self.now + limit
        while not self.equal():
            assert self.now < end, {o: self.peers[o].applied for o in self.living()}
            self.run(0.1)

    def equal(self) -> bool:
        clocks = [self.peers[origin].applied for origin in self.living()]
        return all(clock == clocks[0] for clock in clocks)

    # -- the messages

    def _post(self, kind: str, source: int, target: int, *content: object) -> None:
        self.sent[kind] += 1
        if kind == "update":
            update = content[0]
            assert isinstance(update, Update)
            self.copies[update.origin, update.seq] += 1
        faulty = self.now < self.faults.until
        if self.lose(kind, source, target) or (faulty and self._rng.random() < self.faults.loss):
            return
        twice = faulty and self._rng.random() < self.faults.duplication
        for _ in range(1 + twice):
            delay = self._rng.uniform(*self.faults.delay)
            self.after(delay, partial(self._arrive, kind, source, target, content))

    def _arrive(self, kind: str, source: int, target: int, content: tuple[object, ...]) -> None:
        if self.dead & {source, target} or frozenset((source, target)) in self.cut:
            return
        peer = self.peers[target]
        match kind, content:
            case "update", (Update() as update,):
                if peer.broadcast.has(update.origin, update.seq):
                    peer.broadcast.refuse_duplicate(update.origin, source)
                else:
                    peer.apply(peer.broadcast.offer(update, source, self.now))
            case "graft", (int(origin), int(first), int(last)):
                try:
                    peer.broadcast.grafted(source, origin, first, last)
                except Gone:
                    self._post("gone", target, source)
            case "prune", (int(origin),):
                peer.broadcast.pruned(source, origin)
            case "clock", (dict() as clock,):
                peer.broadcast.heard_clock(source, clock, self.now)
            case "gone", ():
                self.fetch_state(target, source)
            case _:
                raise AssertionError((kind, content))

    def _tick(self, origin: int) -> None:
        if origin not in self.dead:
            self.peers[origin].broadcast.tick(self.now)
            self.after(TICK_SECONDS, partial(self._tick, origin))

    def _clock(self, origin: int) -> None:
        if origin not in self.dead:
            clock = dict(self.peers[origin].broadcast.received)
            for neighbour in sorted(self.graph.get(origin, set()) - self.dead):
                self._post("clock", origin, neighbour, clock)
            self.after(CLOCK_SECONDS, partial(self._clock, origin))
