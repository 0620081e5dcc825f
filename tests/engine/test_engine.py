"""The engine with real peers over real sockets, and alone."""

import copy
import threading
import time

import pytest
import torch
from models import awkward, batch, plain, step
from swarm import Peer, run_swarm
from torch import nn

from gossamer.engine import ConfigurationError, Engine, JoinError

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
}


def train(engine: Engine, peer: Peer, steps: int = 30, delay: float = 0.0) -> None:
    generator = torch.Generator().manual_seed(100 + peer.index)
    for _ in range(steps):
        engine.step(step(peer.model, peer.optimizer, generator))
        time.sleep(delay)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_engine_alone_is_the_plain_optimizer_bit_for_bit(name: str) -> None:
    model, _ = awkward(0)
    reference = copy.deepcopy(model)
    chosen = [p for p in model.parameters() if p.requires_grad]
    optimizer = OPTIMIZERS[name](chosen)
    with Engine(model, optimizer) as engine:
        train(engine, Peer(0, model, optimizer))
    plain_optimizer = OPTIMIZERS[name]([p for p in reference.parameters() if p.requires_grad])
    generator = torch.Generator().manual_seed(100)
    for _ in range(30):
        step(reference, plain_optimizer, generator)
        plain_optimizer.step()
    for key, value in reference.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    assert engine.stats()["bytes_dense"] == 0


@pytest.mark.parametrize("n", [2, 3, 5])
def test_engine_peers_end_with_the_same_bits(n: int) -> None:
    peers = run_swarm(n, awkward, train, topology="ring", compress="1/64:2bit")
    assert len({p.stats["base_digest"] for p in peers}) == 1
    for peer in peers[1:]:
        for own, first in zip(peer.model.parameters(), peers[0].model.parameters(), strict=True):
            assert torch.equal(own, first)
    for peer in peers:
        assert peer.stats["updates_applied"] == 30 * (n - 1)
        assert peer.stats["steps"] == 30
        assert peer.model.enter.weight is peer.model.leave.weight


def test_engine_peers_begin_with_the_first_peers_model() -> None:
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def look(engine: Engine, peer: Peer) -> None:
        seen[peer.index] = copy.deepcopy(peer.model.state_dict())

    run_swarm(3, awkward, look)
    for key, first in seen[0].items():
        # The base is in fixed point: what a joiner gets is within one unit of the first peer's.
        for other in (seen[1][key], seen[2][key]):
            torch.testing.assert_close(other, first, rtol=0, atol=2.0**-22)
        assert torch.equal(seen[1][key], seen[2][key])


def test_engine_learns_from_what_the_others_see() -> None:
    """Peers see 30 small batches each; together they do better than one of them alone."""
    generator = torch.Generator().manual_seed(999)
    x, y = batch(generator)
    for _ in range(30):
        more = batch(generator)
        x, y = torch.cat([x, more[0]]), torch.cat([y, more[1]])

    def loss(model: nn.Module) -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model(x), y))

    alone = run_swarm(1, plain, train)
    together = run_swarm(4, plain, train, topology="complete", compress="1/16:1bit")
    assert loss(together[0].model) < loss(alone[0].model)


@pytest.mark.parametrize("topology", ["ring", "complete", "exponential", "torus"])
def test_engine_runs_on_every_topology(topology: str) -> None:
    peers = run_swarm(5, plain, train, topology=topology, local_steps=3)
    assert len({p.stats["base_digest"] for p in peers}) == 1
    assert all(p.stats["updates_applied"] == 10 * 4 for p in peers)


def test_engine_unequal_speeds_hold_nobody_back() -> None:
    """One peer 4 times slower, one 4 times faster than two others."""
    delays = {0: 0.02, 1: 0.08, 2: 0.005, 3: 0.02}
    ended: dict[int, float] = {}

    def unequal(engine: Engine, peer: Peer) -> None:
        begin = time.monotonic()
        train(engine, peer, steps=60, delay=delays[peer.index])
        ended[peer.index] = time.monotonic() - begin

    def equal(engine: Engine, peer: Peer) -> None:
        train(engine, peer, steps=60, delay=0.02)

    even = run_swarm(4, plain, equal)
    uneven = run_swarm(4, plain, unequal)
    assert len({p.stats["base_digest"] for p in uneven}) == 1
    assert ended[2] < ended[0] < ended[1]
    assert ended[2] < 0.6 * ended[1]
    worst = max(p.stats["consensus_distance"] for p in even)
    assert max(p.stats["consensus_distance"] for p in uneven) <= 3 * worst


def test_engine_shard_divides_an_iterable_among_the_peers() -> None:
    taken: dict[int, list[int]] = {}
    all_have_begun = threading.Barrier(3)

    def look(engine: Engine, peer: Peer) -> None:
        mine = engine.shard(range(20))
        taken[peer.index] = [next(mine)]
        all_have_begun.wait(20)
        taken[peer.index] += mine

    run_swarm(3, plain, look)
    assert sorted(item for items in taken.values() for item in items) == list(range(20))
    assert taken[1] == list(range(1, 20, 3))


def test_engine_state_dict_resumes_alone_bit_for_bit() -> None:
    model, optimizer = plain(3)
    generator = torch.Generator().manual_seed(5)
    with Engine(model, optimizer) as engine:
        for _ in range(10):
            engine.step(step(model, optimizer, generator))
        saved = copy.deepcopy(engine.state_dict())
        rng = generator.get_state()
        for _ in range(10):
            engine.step(step(model, optimizer, generator))
    again, again_optimizer = plain(4)
    resumed = Engine(again, again_optimizer)
    resumed.load_state_dict(saved)
    generator.set_state(rng)
    with resumed:
        for _ in range(10):
            resumed.step(step(again, again_optimizer, generator))
        assert resumed.stats()["steps"] == 20
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_engine_mismatched_models_are_refused_with_both_sizes() -> None:
    model, optimizer = plain(0)
    with Engine(model, optimizer) as first:
        other, other_optimizer = awkward(0)
        joiner = Engine(other, other_optimizer, join=first.endpoint)
        with pytest.raises(JoinError, match=r"10,467 trainable.*236 trainable"), joiner:
            pass
        train(first, Peer(0, model, optimizer), steps=3)
    assert first.stats()["steps"] == 3


def test_engine_join_of_a_dead_endpoint_says_so() -> None:
    model, optimizer = plain(0)
    engine = Engine(model, optimizer, join="tcp://127.0.0.1:9", peer_timeout=1.0)
    with (
        pytest.raises(JoinError, match=r"no peer answered at tcp://127.0.0.1:9 within 1 s"),
        engine,
    ):
        pass


def test_engine_port_in_use_says_so() -> None:
    model, optimizer = plain(0)
    with Engine(model, optimizer) as first:
        second = Engine(*plain(1), bind=first.endpoint)
        with pytest.raises(ConfigurationError, match=r"in use.*choose another"), second:
            pass


def test_engine_outside_its_block_says_so() -> None:
    engine = Engine(*plain(0))
    with pytest.raises(ConfigurationError, match="with Engine"):
        engine.step()


def test_engine_step_after_drain_says_so() -> None:
    model, optimizer = plain(0)
    with Engine(model, optimizer) as engine:
        engine.drain()
        with pytest.raises(ConfigurationError, match="drained"):
            engine.step()


def test_engine_late_joiner_gets_the_current_model() -> None:
    model, optimizer = plain(0)
    with Engine(model, optimizer, peer="peer-0") as first:
        train(first, Peer(0, model, optimizer), steps=20)
        result: list[Peer] = []

        def late() -> None:
            other = Peer(1, *plain(7))
            with Engine(other.model, other.optimizer, join=first.endpoint) as engine:
                other.stats["begin"] = float(torch.linalg.vector_norm(other.flat - begin_flat))
                train(engine, other, steps=10)
            other.stats |= engine.stats()
            result.append(other)

        begin_flat = Peer(0, model, optimizer).flat.clone()
        thread = threading.Thread(target=late, daemon=True)
        thread.start()
        generator = torch.Generator().manual_seed(1)
        assert first.wait_for_peers(2)
        for _ in range(10):
            first.step(step(model, optimizer, generator))
    thread.join(20)
    assert result and result[0].stats["begin"] < 1e-5
    assert result[0].stats["base_digest"] == first.stats()["base_digest"]
