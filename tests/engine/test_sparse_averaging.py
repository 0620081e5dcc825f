"""The algorithm by its identities: the ledger, the order-free sum, the displaced shares."""

import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.engine.algorithms import Outgoing, SparseAveraging
from gossamer.engine.compression import LEVELS
from gossamer.kernels import decode, to_float
from gossamer.transport import Update

SIZES = [1, 63, 4095, 4096, 4097, 9973]


def peers_of(n: int, size: int, level: str = "1/64:2bit") -> list[SparseAveraging]:
    """n peers that begin with the same model, as after a join."""
    x = torch.randn(size, generator=torch.Generator().manual_seed(size))
    first = SparseAveraging(x, origin=1, level=LEVELS[level])
    first.rebase()
    first.consolidate()
    peers = [first]
    for origin in range(2, n + 1):
        peer = SparseAveraging(torch.zeros(size), origin=origin, level=LEVELS[level])
        peer.adopt(first.snapshot({}), keep_residual=False)
        peers.append(peer)
    return peers


def update_of(peer: SparseAveraging, out: Outgoing, produced: float) -> Update:
    payload = bytearray(out.payload.numpy().tobytes())
    return Update(peer.origin, out.seq, out.seq, out.shares, out.codec, produced, payload)


def origins(peers: list[SparseAveraging], but: SparseAveraging) -> set[int]:
    return {p.origin for p in peers if p is not but}


def publish(peers: list[SparseAveraging], peer: SparseAveraging, now: float) -> Update:
    return update_of(peer, peer.encode(peers=origins(peers, peer), now=now), now)


def learn(peer: SparseAveraging, generator: torch.Generator) -> None:
    peer.x += 0.01 * torch.randn(peer.x.shape, generator=generator)


def shares_of(updates: list[Update], size: int, units: Tensor) -> Tensor:
    """The sum of one share of every update, decoded onto an empty base."""
    total = torch.zeros(size, dtype=torch.int32)
    for u in updates:
        level = next(v for v in LEVELS.values() if (v.k << 8 | v.bits) == u.codec)
        payload = torch.frombuffer(u.payload, dtype=torch.uint8)
        decode([payload], [u.shares], [1], None, total, units, format=level)
    return total


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("level", LEVELS)
def test_shared_base_is_the_start_plus_one_share_of_every_update(size: int, level: str) -> None:
    peers = peers_of(3, size, level)
    start = peers[0].shared_base()
    generator, log = torch.Generator().manual_seed(1), []
    for turn in range(6):
        for peer in peers:
            learn(peer, generator)
        fresh = [publish(peers, peer, float(turn)) for peer in peers]
        log += fresh
        for peer in peers:
            mine = [u for u in fresh if u.origin != peer.origin]
            assert peer.apply(mine, contributing=origins(peers, peer)) == 0
    expected = start + shares_of(log, size, peers[0].unit_exponent)
    for peer in peers:
        assert torch.equal(peer.shared_base(), expected)


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(2, 5))
def test_shared_base_does_not_depend_on_the_order_of_arrival(rng: random.Random, n: int) -> None:
    peers = peers_of(n, 5000)
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    waiting: dict[int, list[Update]] = {peer.origin: [] for peer in peers}
    for turn in range(4):
        for peer in rng.sample(peers, n):
            learn(peer, generator)
            update = publish(peers, peer, turn + rng.random())
            for other in origins(peers, peer):
                waiting[other].append(update)
            queue = waiting[peer.origin]
            rng.shuffle(queue)
            # Per origin in order is what the transport promises; between origins any order.
            queue.sort(key=lambda u: u.seq)
            taken, waiting[peer.origin] = queue[: len(queue) // 2], queue[len(queue) // 2 :]
            peer.apply(taken, contributing=origins(peers, peer))
    for peer in peers:
        peer.apply(waiting[peer.origin], contributing=set())
    assert len({peer.digest() for peer in peers}) == 1


def test_residual_is_moved_by_nobody_but_the_optimizer_and_encode() -> None:
    """x - B, in exact arithmetic, is the same before and after receiving and displacing."""
    peers = peers_of(3, 4096)
    generator = torch.Generator().manual_seed(2)

    def residual(peer: SparseAveraging) -> Tensor:
        unit = torch.pow(2.0, peer.unit_exponent.double()).repeat_interleave(4096)[:4096]
        return peer.x.double() - peer.base.double() * unit

    for turn in range(5):
        for peer in peers:
            learn(peer, generator)
        updates = [publish(peers, peer, float(turn)) for peer in peers]
        before = residual(peers[0])
        peers[0].apply(updates[1:], contributing={2, 3})
        after = residual(peers[0])
        # x is float32: an addition to it rounds by half a unit in the last place at most.
        torch.testing.assert_close(after, before, rtol=0, atol=2.0**-22)


def test_own_update_counts_in_full_until_the_others_of_its_age_arrive() -> None:
    peers = peers_of(3, 4096)
    first = peers[0]
    start = first.base.clone()
    first.x += 0.5
    own = publish(peers, first, now=10.0)
    full = first.base - start
    share = shares_of([own], 4096, first.unit_exponent)
    assert torch.equal(full, 3 * share) and int(share.abs().sum()) > 0

    older = [publish(peers, peers[1], now=9.0)]
    zero = shares_of(older, 4096, first.unit_exponent)
    first.apply(older, contributing={2, 3})
    assert torch.equal(first.base - start - zero, 3 * share), (
        "an older contribution displaces nothing"
    )

    newer = [publish(peers, peers[1], now=10.5)]
    first.apply(newer, contributing={2, 3})
    seen = zero + shares_of(newer, 4096, first.unit_exponent)
    assert torch.equal(first.base - start - seen, 2 * share), "one share for the peer that arrived"

    first.apply([], contributing={2})
    assert torch.equal(first.base - start - seen, share), "one share for the peer that is gone"
    assert torch.equal(first.base, first.shared_base())


def test_fast_peer_keeps_a_bounded_list_of_undisplaced_updates() -> None:
    peers = peers_of(2, 4096)
    fast, slow = peers
    generator = torch.Generator().manual_seed(3)
    longest = 0
    for turn in range(200):
        learn(fast, generator)
        publish(peers, fast, now=float(turn))
        if turn % 16 == 0:
            learn(slow, generator)
            fast.apply([publish(peers, slow, now=float(turn))], contributing={2})
        longest = max(longest, len(fast._pending))
    assert longest <= 17


def test_encode_sends_everything_in_the_end() -> None:
    """Without new learning the residual drains to rounding size: nothing is lost, only late."""
    peers = peers_of(2, 9973)
    for peer in peers:
        peer.x += 0.01 * torch.randn(9973, generator=torch.Generator().manual_seed(peer.origin))
    target = (peers[0].x + peers[1].x) / 2
    for turn in range(400):
        updates = [publish(peers, peer, float(turn)) for peer in peers]
        for peer in peers:
            others = origins(peers, peer)
            peer.apply([u for u in updates if u.origin in others], contributing=others)
    for peer in peers:
        shared = to_float(peer.shared_base(), peer.unit_exponent)
        assert float((shared - target).abs().max()) < 1e-3
    assert peers[0].digest() == peers[1].digest()


def test_adopt_keeps_what_was_learned_and_not_sent() -> None:
    peers = peers_of(2, 4096)
    behind, ahead = peers
    generator = torch.Generator().manual_seed(4)
    for turn in range(5):
        learn(ahead, generator)
        publish(peers, ahead, float(turn))
    ahead.apply([], contributing=set())
    behind.x += 0.25
    behind.adopt(ahead.snapshot({}), keep_residual=True)
    shared = to_float(ahead.shared_base(), ahead.unit_exponent)
    torch.testing.assert_close(behind.x - shared, torch.full((4096,), 0.25), rtol=0, atol=1e-6)
    assert behind.clock == {2: 5}
    assert behind.digest() == ahead.digest()


@pytest.mark.parametrize("fault", ["short", "codec", "shares", "bits"])
def test_refusal_names_what_is_wrong(fault: str) -> None:
    peers = peers_of(2, 9973)
    good = publish(peers, peers[1], 0.0)
    payload, codec, shares = bytearray(good.payload), good.codec, good.shares
    assert peers[0].refusal(good) is None
    match fault:
        case "short":
            payload = payload[:-1]
        case "codec":
            codec = 999
        case "shares":
            shares = 1 << 25
        case "bits":
            payload[48:64] = b"\xff" * 16  # the high words of the first chunk
    bad = Update(2, 1, 1, shares, codec, 0.0, payload)
    assert peers[0].refusal(bad)


def test_nonfinite_differences_are_counted_and_not_sent() -> None:
    peers = peers_of(2, 4096)
    peers[0].x[7] = float("nan")
    peers[0].x[8] = float("inf")
    out = peers[0].encode(peers=[2], now=0.0)
    assert (out.nonfinite, out.saturated) == (2, 0)
    peers[1].apply([update_of(peers[0], out, 0.0)], contributing={1})
    assert bool(torch.isfinite(peers[1].x).all())


def test_clock_counts_every_origin_once() -> None:
    peers = peers_of(3, 100)
    for a, b in itertools.permutations(peers, 2):
        b.apply([publish(peers, a, 0.0)], contributing=set())
    assert peers[2].clock == {1: 2, 2: 2, 3: 2}
