"""The graphs that the transport's tests run on."""

import random
from collections.abc import Callable, Mapping, Sequence
from math import isqrt

Graph = dict[int, set[int]]


def _symmetric(n: int, edges: list[tuple[int, int]]) -> Graph:
    graph: Graph = {i: set() for i in range(n)}
    for a, b in edges:
        if a != b:
            graph[a].add(b)
            graph[b].add(a)
    return graph


def ring(n: int) -> Graph:
    return _symmetric(n, [(i, (i + 1) % n) for i in range(n)])


def complete(n: int) -> Graph:
    return _symmetric(n, [(i, j) for i in range(n) for j in range(i)])


def chain(n: int) -> Graph:
    return _symmetric(n, [(i, i + 1) for i in range(n - 1)])


def torus(n: int) -> Graph:
    rows = next(r for r in range(max(isqrt(n), 1), 0, -1) if n % r == 0)
    columns = n // rows
    edges = []
    for i in range(n):
        row, column = divmod(i, columns)
        edges.append((i, row * columns + (column + 1) % columns))
        edges.append((i, (row + 1) % rows * columns + column))
    return _symmetric(n, edges)


def connected_random(n: int) -> Graph:
    rng = random.Random(n)
    edges = [(i, rng.randrange(i)) for i in range(1, n)]
    edges += [(rng.randrange(n), rng.randrange(n)) for _ in range(n // 2)]
    return _symmetric(n, edges)


GRAPHS: dict[str, Callable[[int], Graph]] = {
    "ring": ring,
    "complete": complete,
    "torus": torus,
    "random": connected_random,
}


def of_names(members: Sequence[str], settings: Mapping[str, str]) -> dict[str, set[str]]:
    """The overlay function that a node takes; the run's settings name the graph."""
    graph = {**GRAPHS, "chain": chain}[settings["topology"]](len(members))
    return {members[i]: {members[j] for j in others} for i, others in graph.items()}
