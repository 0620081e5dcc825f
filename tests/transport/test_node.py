"""Nodes on loopback sockets: they join, exchange, count their bytes, drain and leave."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tcp_proxy import Proxy
from transport_peer import Peer, all_training, drain, for_a_while, until

from gossamer.transport import (
    BindError,
    Node,
    NodeConfig,
    Refused,
    Status,
    TransportError,
    Welcomed,
    clock_hash,
)

MakePeers = Callable[..., list[Peer]]
# Payload bytes sent by all peers, over the n - 1 copies that are needed, per payload byte.
MAX_OVERHEAD = 1.10


@pytest.fixture
def make_peers() -> Iterator[MakePeers]:
    """Start n peers that are training together."""
    peers: list[Peer] = []

    def make(n: int, **config: Any) -> list[Peer]:
        offset = len(peers)
        endpoint = peers[0].node.endpoint if peers else None
        for i in range(offset, offset + n):
            peer = Peer(f"peer-{i}", first=i == 0, **config)
            peers.append(peer)
            peer.begin(endpoint)
            endpoint = endpoint or peer.node.endpoint
        all_training(peers)
        return peers

    yield make
    for peer in peers:
        peer.node.close()


@pytest.fixture
def make_proxy() -> Iterator[Callable[..., Proxy]]:
    proxies: list[Proxy] = []

    def make(**options: Any) -> Proxy:
        proxies.append(Proxy(**options))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()


def exchange(peers: list[Peer], rounds: int, size: int) -> None:
    """Everybody publishes, as fast as its links take it."""
    todo = {peer.name: rounds for peer in peers}
    end = time.monotonic() + 20
    while any(todo.values()):
        assert time.monotonic() < end, todo
        for peer in peers:
            if todo[peer.name] and not peer.node.congested:
                peer.publish(size)
                todo[peer.name] -= 1
            peer.turn(0.002)


@pytest.mark.parametrize("topology", ["ring", "complete"])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_peers_exchange_everything_once_and_drain(
    make_peers: MakePeers, n: int, topology: str
) -> None:
    peers = make_peers(n, topology=topology)
    exchange(peers, rounds=20, size=17_000)
    drain(peers)
    for peer in peers:
        assert peer.clock == {other.origin: 20 for other in peers}
        others = {(o.origin, seq) for o in peers if o is not peer for seq in range(1, 21)}
        # Whatever was in the adopted state came with it, and nothing came twice.
        assert set(peer.delivered) == others
        assert set(peer.delivered.values()) <= {1}


@pytest.mark.parametrize("topology", ["ring", "complete"])
def test_large_updates_cost_less_than_a_tenth_more(make_peers: MakePeers, topology: str) -> None:
    n, rounds, size = 4, 4, 3_000_001
    peers = make_peers(n, topology=topology)
    before = sum(peer.node.traffic.sent for peer in peers)
    exchange(peers, rounds, size)
    drain(peers)
    sent = sum(peer.node.traffic.sent for peer in peers) - before
    needed = n * (n - 1) * rounds * size
    assert needed < sent < MAX_OVERHEAD * needed


def test_small_and_empty_updates_arrive(make_peers: MakePeers) -> None:
    peers = make_peers(2)
    for size in (0, 1, 0, 65_535, 262_144, 262_145, 0):
        peers[0].publish(size)
    until(peers, lambda: peers[1].clock == peers[0].clock, 5, "all sizes arrive")


def test_joiner_gets_what_was_and_what_flows(make_peers: MakePeers) -> None:
    peers = make_peers(3, topology="complete")
    exchange(peers, rounds=5, size=5000)
    joiner = Peer("late", first=False)
    try:
        joiner.begin(peers[1].node.endpoint)
        everyone = [*peers, joiner]
        end = time.monotonic() + 10
        while not all(peer.training() == 4 for peer in everyone):
            assert time.monotonic() < end
            for peer in everyone:
                if peer is not joiner and peer.clock[peer.origin] < 300:
                    peer.publish(5000)
                peer.turn(0.01)
        assert joiner.adoptions == 1
        assert any(isinstance(event, Welcomed) for event in joiner.events)
        exchange(everyone, rounds=5, size=5000)
        drain(everyone)
        assert joiner.clock[joiner.origin] == 5
        assert set(joiner.delivered.values()) == {1}
    finally:
        joiner.node.close()


def test_peers_that_join_at_the_same_moment_by_different_peers_all_train(
    make_peers: MakePeers,
) -> None:
    peers = make_peers(2)
    joiners = [Peer(f"late-{i}", first=False) for i in range(3)]
    try:
        for i, joiner in enumerate(joiners):
            joiner.begin(peers[i % 2].node.endpoint)
        everyone = [*peers, *joiners]
        all_training(everyone)
        exchange(everyone, rounds=5, size=1000)
        drain(everyone)
    finally:
        for joiner in joiners:
            joiner.node.close()


def test_two_of_one_name_who_join_at_the_same_moment_break_nothing(make_peers: MakePeers) -> None:
    peers = make_peers(2)
    twins = [Peer("twin", first=False), Peer("twin", first=False)]
    try:
        for twin, sponsor in zip(twins, peers, strict=True):
            twin.begin(sponsor.node.endpoint)
        everyone = [*peers, *twins]

        def settled(twin: Peer) -> bool:
            refused = any(isinstance(event, Refused) for event in twin.events)
            return refused or twin.adoptions > 0

        until(everyone, lambda: all(settled(twin) for twin in twins), 10, "twins know")
        accepted = [twin for twin in twins if twin.adoptions]
        assert accepted
        members = [*peers, *accepted]
        all_training(members)
        exchange(members, rounds=3, size=100)
        drain(members)
    finally:
        for twin in twins:
            twin.node.close()


def test_large_state_arrives_while_it_is_asked_for_again(
    make_peers: MakePeers, make_proxy: Callable[..., Proxy]
) -> None:
    """The engine asks again every second; a state that takes longer must not begin anew."""
    (first,) = make_peers(1)
    first.state_bytes = 6_000_000
    proxy = make_proxy(rate=2_000_000)
    joiner = Peer("late", first=False, advertise=proxy.endpoint)
    try:
        proxy.lead_to(joiner.node.endpoint)
        started = time.monotonic()
        joiner.begin(first.node.endpoint)
        until([first, joiner], lambda: joiner.adoptions == 1, 12, "the state arrives")
        assert time.monotonic() - started > 2.0
        assert joiner.node.traffic.received < 1.3 * first.state_bytes
    finally:
        joiner.node.close()


def test_leaving_peer_is_known_to_all_at_once(make_peers: MakePeers) -> None:
    peers = make_peers(5, peer_timeout=30.0)
    exchange(peers, rounds=2, size=100)
    peers[2].node.close()
    rest = [peer for peer in peers if peer is not peers[2]]
    gone = lambda: all(peer.status_of("peer-2") is Status.LEFT for peer in rest)  # noqa: E731
    until(rest, gone, 5, "all know of the leave")
    exchange(rest, rounds=2, size=100)
    drain(rest)


def test_two_neighbours_that_leave_at_once_are_both_known(make_peers: MakePeers) -> None:
    peers = make_peers(5, peer_timeout=4.0)
    peers[1].node._stop.set()
    peers[2].node.close()
    peers[1].node.close()
    rest = [peers[0], peers[3], peers[4]]
    until(
        rest,
        lambda: all(not p.member(name).alive for p in rest for name in ("peer-1", "peer-2")),  # type: ignore[union-attr]
        10,
        "both are gone",
    )
    exchange(rest, rounds=2, size=100)
    drain(rest)


def test_links_follow_the_overlay(make_peers: MakePeers) -> None:
    """A link that no side wants any more closes; one that is wanted stands both ways."""
    peers = make_peers(6, peer_timeout=6.0)

    def links() -> list[list[bool]]:
        return [
            [link.established for link in list(p.node._protocol.overlay.links.values())]
            for p in peers
        ]

    until(peers, lambda: links() == [[True, True]] * 6, 8, "two links each")


def test_traffic_counts_the_bytes_on_the_wire(make_proxy: Callable[..., Proxy]) -> None:
    proxies = [make_proxy(), make_proxy()]
    peers = [
        Peer("a", first=True, advertise=proxies[0].endpoint),
        Peer("b", first=False, advertise=proxies[1].endpoint),
    ]
    try:
        for peer, proxy in zip(peers, proxies, strict=True):
            proxy.lead_to(peer.node.endpoint)
        peers[0].begin()
        peers[1].begin(proxies[0].endpoint)
        all_training(peers)
        exchange(peers, rounds=50, size=3000)
        peers[0].publish(2_000_000)
        drain(peers)
        for_a_while(peers, 0.3)
        seen = [proxies[1].towards + proxies[0].back, proxies[0].towards + proxies[1].back]
        sent = [peer.node.traffic.sent for peer in peers]
        received = [peer.node.traffic.received for peer in peers]
    finally:
        for peer in peers:
            peer.node.close()
    # Four connections, each with a greeting and a handshake in both directions.
    constant = 4 * 256
    assert sent == pytest.approx(seen, rel=0.02, abs=constant)
    assert received == pytest.approx(seen[::-1], rel=0.02, abs=constant)


def test_port_in_use_is_one_sentence(make_peers: MakePeers) -> None:
    (peer,) = make_peers(1)
    endpoint = peer.node.endpoint
    with pytest.raises(BindError) as caught:
        Peer("other", first=False, bind=endpoint)
    assert str(caught.value) == f"cannot listen on {endpoint}: Address already in use"


@pytest.mark.parametrize(
    "endpoint", ["nonsense", "tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:port", "udp://x:1", ""]
)
def test_malformed_bind_is_one_sentence(endpoint: str) -> None:
    with pytest.raises(BindError, match="cannot listen on"):
        Peer("peer", first=False, bind=endpoint)


@pytest.mark.parametrize("endpoint", ["nonsense", "tcp://127.0.0.1", "tcp://127.0.0.1:port", ""])
def test_malformed_endpoint_to_join_is_refused_at_once(endpoint: str) -> None:
    peer = Peer("peer", first=False)
    try:
        peer.begin(endpoint)
        until([peer], lambda: bool(peer.events), 2, "the refusal")
        (event,) = peer.events
        assert isinstance(event, Refused)
        assert repr(endpoint) in event.text
    finally:
        peer.node.close()


def test_join_where_nobody_listens_neither_fails_nor_hangs(
    make_proxy: Callable[..., Proxy],
) -> None:
    proxy = make_proxy()
    peer = Peer("peer", first=False)
    peer.begin(proxy.endpoint)
    for_a_while([peer], 0.5)
    assert peer.events == []
    started = time.monotonic()
    peer.node.close()
    assert time.monotonic() - started < 3


def test_second_join_replaces_the_first(
    make_peers: MakePeers, make_proxy: Callable[..., Proxy]
) -> None:
    (first,) = make_peers(1)
    joiner = Peer("joiner", first=False)
    try:
        joiner.begin(make_proxy().endpoint)
        for_a_while([first, joiner], 0.2)
        joiner.begin(first.node.endpoint)
        all_training([first, joiner])
    finally:
        joiner.node.close()


@pytest.mark.parametrize("change", [{"peer": "p" * 65}, {"peer": ""}, {"advertise": "e" * 129}])
def test_config_that_no_message_can_hold_is_an_error(change: dict[str, str]) -> None:
    config: dict[str, Any] = {"peer": "peer", "run": "run", **change}
    with pytest.raises(TransportError, match="cannot introduce itself"):
        Node(NodeConfig(**config), lambda members, settings: {})


def test_closed_node_takes_no_commands() -> None:
    peer = Peer("peer", first=True).begin()
    peer.node.close()
    peer.node.close()
    assert peer.node.poll() is not None
    with pytest.raises(TransportError, match="closed"):
        peer.publish(1)


def test_node_that_never_started_closes() -> None:
    node = Node(NodeConfig(peer="peer", run="run"), lambda members, settings: {})
    node.close()


def test_clock_hash_depends_on_what_was_applied_alone() -> None:
    assert clock_hash({1: 2, 3: 4}) == clock_hash({3: 4, 1: 2, 9: 0})
    assert clock_hash({1: 2}) != clock_hash({1: 3})
    assert clock_hash({1: 2}) != clock_hash({2: 2})
