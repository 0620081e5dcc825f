"""Topologies: connected, undirected, without loops, for every number of peers."""

import networkx as nx
import pytest

from gossamer.engine import ConfigurationError
from gossamer.engine.topology import TOPOLOGIES, builder, neighbours


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_topology_connects_any_number_of_peers(name: str) -> None:
    for n in range(1, 34):
        graph = builder(name)(n)
        assert sorted(graph) == list(range(n))
        assert nx.is_connected(graph)
        members = [f"peer-{i}" for i in range(n)]
        adjacent = neighbours(name, members)
        for member, others in adjacent.items():
            assert member not in others
            assert all(member in adjacent[other] for other in others)


def test_topology_degrees_are_those_of_its_name() -> None:
    assert dict(builder("ring")(7).degree()) == dict.fromkeys(range(7), 2)
    assert dict(builder("complete")(5).degree()) == dict.fromkeys(range(5), 4)
    assert set(dict(builder("torus")(12).degree()).values()) == {4}
    assert nx.diameter(builder("exponential")(32)) <= 3
    assert max(dict(builder("exponential")(32).degree()).values()) == 9


def test_topology_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"'moebius'.*ring, complete"):
        builder("moebius")
