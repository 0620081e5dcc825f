"""Topologies: who is whose neighbour, derived from the list of members alone.

Every peer derives the same graph from the same list, so a join or a leave needs no negotiation.
Updates reach every peer over any connected graph; the topology decides over how many links and
hops.
"""

from collections.abc import Callable, Sequence
from math import isqrt

import networkx as nx

from gossamer.engine.errors import ConfigurationError

DEFAULT_TOPOLOGY = "ring"


def ring(n: int) -> nx.Graph:
    """Each peer between two others; n hops / 2 to the farthest."""
    return nx.cycle_graph(n) if n > 2 else nx.path_graph(n)


def complete(n: int) -> nx.Graph:
    """Everyone next to everyone: one hop, n - 1 links per peer."""
    return nx.complete_graph(n)


def exponential(n: int) -> nx.Graph:
    """Links to the peers 1, 2, 4, 8, ... places away (Ying et al. 2021), in both directions."""
    jumps = [1 << i for i in range((n - 1).bit_length())] if n > 1 else []
    return nx.circulant_graph(n, jumps)


def torus(n: int) -> nx.Graph:
    """A 2-D grid with wrap-around, as square as n allows; a ring when n is prime."""
    rows = next(r for r in range(max(isqrt(n), 1), 0, -1) if n % r == 0)
    if rows < 2:
        return ring(n)
    grid = nx.grid_2d_graph(rows, n // rows, periodic=True)
    return nx.convert_node_labels_to_integers(grid, ordering="sorted")


TOPOLOGIES: dict[str, Callable[[int], nx.Graph]] = {
    "ring": ring,
    "complete": complete,
    "exponential": exponential,
    "torus": torus,
}


def builder(name: str) -> Callable[[int], nx.Graph]:
    """The topology with this name. Raises ConfigurationError for an unknown one."""
    if name not in TOPOLOGIES:
        raise ConfigurationError(
            f"unknown topology {name!r}; choose one of {', '.join(TOPOLOGIES)}"
        )
    return TOPOLOGIES[name]


def neighbours(name: str, members: Sequence[str]) -> dict[str, set[str]]:
    """The neighbours of each member, for the list in the order that all peers agree on."""
    graph = builder(name)(len(members))
    return {
        member: {members[j] for j in graph.adj[i]} - {member} if i in graph else set()
        for i, member in enumerate(members)
    }
