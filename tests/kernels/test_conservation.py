"""Nothing is lost: what leaves one peer's difference is what every peer's base gains."""

import itertools

import pytest
import torch
from kernel_cases import ALL_FORMATS, SHARES, format_name, make

from gossamer.kernels import decode, encode, to_float

formats = pytest.mark.parametrize("format", ALL_FORMATS, ids=format_name)
N = 9973


@formats
@pytest.mark.parametrize("shares", SHARES)
def test_sender_gains_shares_times_what_a_receiver_gains(format, shares):
    case = make("trained", N)
    sender, receiver = case.base.clone(), case.base.clone()
    payload, _ = encode(case.x, sender, case.unit_exponent, format=format, shares=shares)
    decode([payload], [shares], [1], None, receiver, case.unit_exponent, format=format)
    assert torch.equal(sender - case.base, shares * (receiver - case.base))
    assert (sender != case.base).sum() > 0


@formats
@pytest.mark.parametrize("shares", SHARES[1:])
def test_displacing_all_other_shares_leaves_one(format, shares):
    case = make("trained", N)
    sender, receiver = case.base.clone(), case.base.clone()
    payload, _ = encode(case.x, sender, case.unit_exponent, format=format, shares=shares)
    decode([payload], [shares], [1], None, receiver, case.unit_exponent, format=format)
    at_once = sender.clone()
    decode([payload], [shares], [1 - shares], None, at_once, case.unit_exponent, format=format)
    one_by_one = sender.clone()
    for _ in range(shares - 1):
        decode([payload], [shares], [-1], None, one_by_one, case.unit_exponent, format=format)
    assert torch.equal(at_once, receiver)
    assert torch.equal(one_by_one, receiver)


@formats
def test_model_moves_with_the_base(format):
    """Where the sums are exact in float32, x - base * unit is the same before and after."""
    case = make("equal", N)
    base, x = case.base.clone(), case.x.clone()
    sent = case.x + torch.randn(N, generator=torch.Generator().manual_seed(5)) * 1e-2
    payload, _ = encode(sent, base.clone(), case.unit_exponent, format=format, shares=2)
    decode([payload], [2], [1], x, base, case.unit_exponent, format=format)
    assert not torch.equal(base, case.base)
    assert torch.equal(x, to_float(base, case.unit_exponent))


@formats
def test_base_has_the_same_bits_in_every_order(format):
    shared = make("trained", N)
    updates = []
    for seed in range(4):
        x = shared.x + torch.randn(N, generator=torch.Generator().manual_seed(seed))
        payload, _ = encode(x, shared.base.clone(), shared.unit_exponent, format=format, shares=4)
        updates.append(payload)
    bases = []
    for order in itertools.permutations(range(4)):
        base = shared.base.clone()
        for i in order:
            decode([updates[i]], [4], [1], None, base, shared.unit_exponent, format=format)
        bases.append(base)
    together = shared.base.clone()
    decode(updates, [4] * 4, [1] * 4, None, together, shared.unit_exponent, format=format)
    assert all(torch.equal(base, together) for base in bases)
    assert not torch.equal(together, shared.base)
