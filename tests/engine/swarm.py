"""Several peers in one process: a thread each, over real sockets on loopback."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.engine import Engine

JOIN_SECONDS = 60.0


@dataclass
class Peer:
    """One peer of a test, and what is left of it."""

    index: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    stats: dict[str, Any] = field(default_factory=dict)
    error: BaseException | None = None
    engine: Engine | None = None

    @property
    def flat(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])


def run_swarm(
    n: int,
    make: Callable[[int], tuple[nn.Module, torch.optim.Optimizer]],
    train: Callable[[Engine, Peer], None],
    **arguments: Any,
) -> list[Peer]:
    """Train n peers to the end: the first begins the run, the others join, all start at once.

    Raises the first peer's error, if any.
    """
    peers = [Peer(i, *make(i)) for i in range(n)]
    begun = threading.Event()
    endpoint: list[str] = []

    def main(peer: Peer) -> None:
        try:
            if peer.index:
                begun.wait(JOIN_SECONDS)
            join = endpoint[0] if peer.index else None
            engine = Engine(
                peer.model, peer.optimizer, peer=f"peer-{peer.index}", join=join, **arguments
            )
            peer.engine = engine
            with engine:
                if peer.index == 0:
                    endpoint.append(engine.endpoint)
                    begun.set()
                assert engine.wait_for_peers(n)
                train(engine, peer)
            peer.stats = engine.stats()
        except BaseException as error:
            peer.error = error
            begun.set()

    threads = [threading.Thread(target=main, args=(peer,), daemon=True) for peer in peers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(JOIN_SECONDS)
        assert not thread.is_alive(), "a peer hangs"
    for peer in peers:
        if peer.error is not None:
            raise peer.error
    return peers
