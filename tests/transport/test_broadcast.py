"""Exactly once to everybody, on a virtual network that delays, loses, doubles, cuts and kills."""

import random
from collections import Counter
from functools import partial

import overlays
import pytest
from virtual_network import CLOCK_SECONDS, Faults, VirtualNetwork, payload_of

from gossamer.transport.broadcast import Broadcast, Gone, Update, broadcast_children

ROUNDS = 12
SIZES = [1, 2, 3, 4, 5, 6, 9]
# Bound on copies that arrive beyond the n - 1 that are needed, as a share of those, when one
# message in ten is lost.
REDUNDANCY_UNDER_LOSS = 0.10

every_graph = pytest.mark.parametrize("kind", sorted(overlays.GRAPHS))
every_size = pytest.mark.parametrize("n", SIZES)


def train(network: VirtualNetwork, rounds: int = ROUNDS, pause: float = 0.1) -> None:
    """Every living peer publishes `rounds` updates, each at its own moments."""
    rng = random.Random(7)
    for origin in network.living():
        at = 0.0
        for _ in range(rounds):
            at += rng.uniform(0, 2 * pause)
            network.after(at, partial(network.publish, origin))
    network.run(2 * rounds * pause)


def assert_everything_once(network: VirtualNetwork, rounds: int = ROUNDS) -> None:
    living = network.living()
    for origin in living:
        peer = network.peers[origin]
        assert peer.applied == dict.fromkeys(living, rounds)
        others = {(o, seq) for o in living if o != origin for seq in range(1, rounds + 1)}
        assert peer.delivered == Counter(dict.fromkeys(others, 1))


@every_graph
@every_size
def test_broadcast_without_faults_sends_n_minus_one_copies(kind: str, n: int) -> None:
    network = VirtualNetwork(overlays.GRAPHS[kind](n), seed=n)
    train(network)
    network.run_until_equal(1.0)
    assert_everything_once(network)
    assert set(network.copies.values()) <= {n - 1}
    assert sum(network.copies.values()) == n * (n - 1) * ROUNDS
    assert not network.sent["graft"]
    assert not network.sent["prune"]


@every_graph
@every_size
@pytest.mark.parametrize("seed", [1, 2])
def test_broadcast_survives_loss_duplication_and_reordering(kind: str, n: int, seed: int) -> None:
    faults = Faults(loss=0.1, duplication=0.05, delay=(0.001, 0.3))
    network = VirtualNetwork(overlays.GRAPHS[kind](n), seed=seed, faults=faults)
    train(network)
    network.run_until_equal(60.0)
    assert_everything_once(network)


@every_graph
@pytest.mark.parametrize("n", [4, 9])
def test_broadcast_under_loss_keeps_redundancy_bounded(kind: str, n: int) -> None:
    network = VirtualNetwork(overlays.GRAPHS[kind](n), seed=3, faults=Faults(loss=0.1))
    train(network, rounds=60)
    network.run_until_equal(60.0)
    assert_everything_once(network, rounds=60)
    duplicates = sum(peer.broadcast.duplicates for peer in network.peers.values())
    assert duplicates <= REDUNDANCY_UNDER_LOSS * n * (n - 1) * 60


@pytest.mark.parametrize("kind", ["graft", "prune", "clock"])
def test_broadcast_survives_the_loss_of_every_second_control_message(kind: str) -> None:
    network = VirtualNetwork(overlays.ring(5), seed=4, faults=Faults(loss=0.1))
    coin = random.Random(4)
    network.lose = lambda of, source, target: of == kind and coin.random() < 0.5
    train(network)
    network.run_until_equal(60.0)
    assert_everything_once(network)


def test_broadcast_repairs_a_hole_while_later_updates_flow() -> None:
    """Later updates of the origin keep coming; they must not postpone the graft for ever."""
    network = VirtualNetwork(overlays.complete(3), seed=5)
    network.publish(1)
    network.run(1.0)
    network.lose = lambda kind, source, target: kind == "update" and target == 3
    network.publish(1)
    network.lose = lambda kind, source, target: False
    for i in range(200):
        network.after(0.02 * i, partial(network.publish, 1))
    network.run(2.0)
    assert network.peers[3].applied[1] > 2
    network.run(3.0)
    assert network.equal()


@every_graph
@pytest.mark.parametrize("n", [3, 6, 9])
def test_broadcast_goes_around_a_cut_link(kind: str, n: int) -> None:
    network = VirtualNetwork(overlays.GRAPHS[kind](n), seed=6)
    edge = next((a, b) for a in network.graph for b in sorted(network.graph[a]))
    bridge = kind == "random" and not _connected_without(network.graph, edge)
    network.cut.add(frozenset(edge))
    train(network)
    if bridge:
        network.cut.clear()
    network.run_until_equal(30.0)
    assert_everything_once(network)


def _connected_without(graph: overlays.Graph, edge: tuple[int, int]) -> bool:
    seen, frontier = {1}, [1]
    while frontier:
        node = frontier.pop()
        for other in graph[node] - seen:
            if {node, other} != set(edge):
                seen.add(other)
                frontier.append(other)
    return len(seen) == len(graph)


@every_graph
def test_broadcast_catches_up_after_a_partition(kind: str) -> None:
    network = VirtualNetwork(overlays.GRAPHS[kind](6), seed=8)
    sides = {1, 2, 3}
    network.cut |= {
        frozenset((a, b))
        for a in network.graph
        for b in network.graph[a]
        if (a in sides) != (b in sides)
    }
    train(network)
    assert not network.equal()
    network.cut.clear()
    network.run_until_equal(30.0)
    assert_everything_once(network)


@every_graph
@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_survivors_agree_when_a_peer_dies_in_mid_broadcast(kind: str, n: int) -> None:
    """The last update of the dead peer reached one neighbour only."""
    network = VirtualNetwork(overlays.GRAPHS[kind](n), seed=9)
    train(network, rounds=3)
    network.run_until_equal(5.0)
    heir = min(network.graph[1])
    network.lose = lambda kind, source, target: source == 1 and target != heir
    network.publish(1)
    network.run(0.02)
    network.kill(1)
    network.run(0.2)
    network.lose = lambda kind, source, target: False
    train(network, rounds=3)
    network.run_until_equal(30.0)
    network.run(10.0)
    assert network.equal()
    assert {network.peers[origin].applied[1] for origin in network.living()} == {4}


@every_graph
def test_survivors_agree_when_a_peer_dies_and_messages_are_lost(kind: str) -> None:
    for seed in range(5):
        network = VirtualNetwork(overlays.GRAPHS[kind](9), seed=seed, faults=Faults(loss=0.1))
        network.after(0.7, partial(network.kill, 4))
        train(network)
        network.run_until_equal(60.0)
        living = network.living()
        for origin in living:
            peer = network.peers[origin]
            assert set(peer.delivered.values()) == {1}
            assert all(peer.applied[other] == ROUNDS for other in living)


def test_peer_whose_own_updates_left_the_log_cannot_go_on() -> None:
    network = VirtualNetwork(overlays.ring(4), seed=10, log_bytes=1000)
    lonely = {frozenset((1, 2)), frozenset((1, 4))}
    train(network, rounds=3)
    network.cut |= lonely
    train(network, rounds=20)
    network.cut -= lonely
    with pytest.raises(Gone):
        network.run(30.0)


@pytest.mark.parametrize("seed", range(5))
def test_peer_that_missed_too_much_goes_on_from_a_state(seed: int) -> None:
    faults = Faults(loss=0.05)
    network = VirtualNetwork(overlays.ring(4), seed=seed, faults=faults, log_bytes=2000)
    train(network, rounds=3)
    lonely = {frozenset((1, 2)), frozenset((1, 4))}
    network.run_until_equal(30.0)
    network.cut |= lonely
    for at in range(40):
        for origin in (2, 3, 4):
            network.after(0.1 * at, partial(network.publish, origin))
    network.publish(1)
    network.run(5.0)
    network.cut -= lonely
    network.run_until_equal(60.0)
    assert network.peers[1].adoptions
    train(network, rounds=3)
    network.run_until_equal(60.0)
    assert network.peers[2].applied == {1: 7, 2: 46, 3: 46, 4: 46}


@pytest.mark.parametrize("behind", [0, 3, 8])
def test_joiner_gets_state_then_what_follows_it(behind: int) -> None:
    """Updates come while the state is on its way, older than some of them."""
    network = VirtualNetwork(overlays.complete(3), seed=11)
    train(network, rounds=3)
    network.run_until_equal(1.0)
    network.graph = {a: set(range(1, 5)) - {a} for a in range(1, 5)}
    network.add(4)
    joiner = network.peers[4]
    for origin in network.living():
        network.derive(origin)
    stale = dict(network.peers[2].applied)
    for at in range(behind):
        network.after(0.05 * at, partial(network.publish, 1))
    network.run(1.0)
    assert not joiner.delivered
    joiner.applied = dict(stale)
    joiner.apply(joiner.broadcast.adopt(stale))
    train(network, rounds=2)
    network.run_until_equal(10.0)
    assert joiner.applied == {1: 5 + behind, 2: 5, 3: 5, 4: 2}
    assert set(joiner.delivered.values()) == {1}


# -- one peer's state machine


class Wire:
    """Records what a Broadcast sends."""

    def __init__(self, *, log_bytes: int = 1 << 20, origin: int = 1) -> None:
        self.sent: list[tuple[object, ...]] = []
        self.broadcast = Broadcast(
            origin,
            send=lambda peer, update: self.sent.append(("send", peer, update.origin, update.seq)),
            graft=lambda *ask: self.sent.append(("graft", *ask)),
            prune=lambda *ask: self.sent.append(("prune", *ask)),
            log_bytes=log_bytes,
            max_delay=5.0,
        )


def update(origin: int, seq: int) -> Update:
    return Update(origin, seq, 0, 1, 0, 0.0, payload_of(origin, seq))


def test_adopt_replays_from_the_log_what_is_newer_than_the_state() -> None:
    broadcast = Wire().broadcast
    broadcast.adopt({})
    for seq in range(1, 6):
        broadcast.offer(update(2, seq), 2, 0.0)
    assert [u.seq for u in broadcast.adopt({2: 3})] == [4, 5]
    assert broadcast.received == {2: 5}


def test_adopt_raises_gone_when_own_updates_left_the_log() -> None:
    broadcast = Wire(log_bytes=250).broadcast
    broadcast.adopt({})
    for seq in range(1, 6):
        broadcast.publish(update(1, seq))
    assert [u.seq for u in broadcast.adopt({1: 3})] == [4, 5]
    with pytest.raises(Gone):
        broadcast.adopt({1: 1})


def test_grafted_beyond_the_log_raises_gone() -> None:
    wire = Wire(log_bytes=250)
    wire.broadcast.adopt({})
    for seq in range(1, 6):
        wire.broadcast.publish(update(1, seq))
    wire.broadcast.grafted(2, 1, 4, 9)
    assert wire.sent == [("send", 2, 1, 4), ("send", 2, 1, 5)]
    with pytest.raises(Gone):
        wire.broadcast.grafted(2, 1, 3, 9)


def test_grafted_of_any_range_costs_no_more_than_what_is_there() -> None:
    """A forged number far ahead must not make a graft walk through all numbers before it."""
    wire = Wire()
    wire.broadcast.adopt({})
    wire.broadcast.offer(update(2, (1 << 32) - 1), 2, 0.0)
    wire.broadcast.offer(update(2, 1), 2, 0.0)
    wire.sent.clear()
    wire.broadcast.grafted(3, 2, 1, (1 << 32) - 1)
    assert wire.sent == [("send", 3, 2, 1), ("send", 3, 2, (1 << 32) - 1)]


def test_log_stays_within_its_bytes_after_states() -> None:
    """An update that is received again after an older state counts once."""
    wire = Wire(log_bytes=1000)
    wire.broadcast.adopt({})
    for _ in range(50):
        for seq in range(1, 6):
            wire.broadcast.offer(update(2, seq), 2, 0.0)
        wire.broadcast.adopt({2: 3})
    wire.broadcast.grafted(3, 2, 1, 9)
    assert [item[3] for item in wire.sent] == [1, 2, 3, 4, 5]


def test_held_updates_stay_within_the_bytes_of_the_log() -> None:
    wire = Wire(log_bytes=1000)
    wire.broadcast.adopt({})
    for seq in range(2, 100):
        assert wire.broadcast.offer(update(2, seq), 2, 0.0) == []
    kept = [seq for seq in range(2, 100) if wire.broadcast.has(2, seq)]
    assert kept == list(range(2, 12))
    assert [u.seq for u in wire.broadcast.offer(update(2, 1), 2, 0.0)] == list(range(1, 12))
    assert [u.seq for u in wire.broadcast.offer(update(2, 12), 2, 0.0)] == [12]


def test_graft_asks_another_source_when_the_first_does_not_deliver() -> None:
    wire = Wire()
    wire.broadcast.adopt({})
    for peer in (2, 3):
        wire.broadcast.link_up(peer)
        wire.broadcast.heard_clock(peer, {9: 1}, 0.0)
    for tenth in range(30):
        wire.broadcast.tick(tenth / 10)
    asked = [item[1] for item in wire.sent]
    assert asked[:2] == [2, 3]
    assert all(item[0] == "graft" for item in wire.sent)


def test_graft_waits_while_the_next_update_is_on_its_way() -> None:
    wire = Wire()
    wire.broadcast.adopt({})
    wire.broadcast.link_up(2)
    wire.broadcast.heard_clock(2, {9: 5}, 0.0)
    for tenth in range(1, 50):
        wire.broadcast.progress(9, 1, tenth / 10)
        wire.broadcast.tick(tenth / 10)
    assert wire.sent == []
    for tenth in range(50, 60):
        wire.broadcast.progress(9, 3, tenth / 10)
        wire.broadcast.tick(tenth / 10)
    assert wire.sent == [("graft", 2, 9, 1, (1 << 32) - 1)]


def test_publish_refuses_a_number_that_is_not_the_next() -> None:
    broadcast = Wire().broadcast
    broadcast.adopt({})
    with pytest.raises(ValueError, match="update 2 after 0"):
        broadcast.publish(update(1, 2))


# -- the trees


def tree(graph: overlays.Graph, root: int) -> dict[int, set[int]]:
    return {peer: broadcast_children(graph, sorted(graph), root, peer) for peer in graph}


@every_graph
@every_size
def test_trees_span_the_graph_by_shortest_paths(kind: str, n: int) -> None:
    graph = overlays.GRAPHS[kind](n)
    for root in graph:
        children = tree(graph, root)
        depth, frontier = {root: 0}, [root]
        while frontier:
            node = frontier.pop()
            for child in children[node]:
                assert child in graph[node]
                assert child not in depth
                depth[child] = depth[node] + 1
                frontier.append(child)
        assert depth == _distances(graph, root)


def _distances(graph: overlays.Graph, root: int) -> dict[int, int]:
    depth, level = {root: 0}, [root]
    while level:
        level = [b for a in level for b in graph[a] if depth.setdefault(b, depth[a] + 1) > depth[a]]
        level = [node for node in dict.fromkeys(level) if node != root]
    return depth


@every_graph
def test_trees_do_not_depend_on_the_order_of_sets(kind: str) -> None:
    # Sets of such numbers iterate in the order of insertion, as origins do on different peers.
    names = [i * (1 << 40) + 5 for i in range(9)]
    graph = {names[a]: [names[b] for b in others] for a, others in overlays.GRAPHS[kind](9).items()}
    rng = random.Random(1)
    seen = []
    for _ in range(5):
        items = [(a, rng.sample(others, len(others))) for a, others in graph.items()]
        rng.shuffle(items)
        shuffled = {a: dict.fromkeys(others).keys() for a, others in items}
        seen.append(
            [
                broadcast_children(shuffled, sorted(names), root, peer)  # type: ignore[arg-type]
                for root in names
                for peer in names
            ]
        )
    assert all(one == seen[0] for one in seen)


@pytest.mark.parametrize(
    ("kind", "n"),
    [("ring", 4), ("ring", 5), ("ring", 9), ("complete", 9), ("torus", 9), ("torus", 16)],
)
def test_trees_spread_the_load(kind: str, n: int) -> None:
    """Over all roots, no peer forwards more than half again the mean of n - 1 copies."""
    graph = (overlays.torus if kind == "torus" else overlays.GRAPHS[kind])(n)
    load = Counter[int]()
    for root in graph:
        for peer, children in tree(graph, root).items():
            load[peer] += len(children)
    assert sum(load.values()) == n * (n - 1)
    assert max(load.values()) <= 1.5 * (n - 1)


def test_root_outside_the_list_has_no_children() -> None:
    assert broadcast_children(overlays.ring(3), [0, 1, 2], 9, 0) == set()


def test_clock_interval_is_shorter_than_the_first_graft() -> None:
    """Otherwise an advertisement would find its update already asked for."""
    from gossamer.transport import broadcast, protocol

    assert protocol.CLOCK_INTERVAL_SECONDS == CLOCK_SECONDS < broadcast.FIRST_GRAFT_DELAY_SECONDS
