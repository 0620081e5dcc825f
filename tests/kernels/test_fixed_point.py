import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import SIZES

from gossamer.kernels import choose_unit_exponents, to_counts, to_float
from gossamer.kernels.fixed_point import power_of_two, share_counts


@pytest.mark.parametrize(
    ("largest", "exponent"),
    [
        (0.0, -24),
        (2.0**-3, -24),
        (0.25, -24),
        (0.2500001, -23),
        (1.0, -22),
        (1.0000001, -21),
        (2.0, -21),
        (3.0, -20),
        (2.0**122, 100),
        (3e38, 100),
    ],
)
def test_unit_exponent_is_the_ceiling_of_the_logarithm(largest, exponent):
    x = torch.zeros(5000)
    x[17] = -largest
    assert choose_unit_exponents(x).tolist() == [exponent, -24]


@pytest.mark.parametrize("n", SIZES)
def test_unit_gives_the_largest_magnitude_between_2_21_and_2_22_counts(n):
    x = 10 * torch.randn(n, generator=torch.Generator().manual_seed(0))
    unit_exponent = choose_unit_exponents(x)
    assert unit_exponent.dtype == torch.int8
    counts = to_counts(x, unit_exponent)
    assert (counts.abs() <= 2**22).all()
    # The last chunk may be small enough for the smallest unit.
    for chunk in counts.split(4096)[:-1]:
        assert int(chunk.abs().max()) > 2**21


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_units_need_finite_values(value):
    x = torch.zeros(100)
    x[42] = value
    with pytest.raises(ValueError, match=rf"x\[42\] is {value}"):
        choose_unit_exponents(x)


@settings(deadline=None, max_examples=200)
@given(
    value=st.floats(width=32, allow_nan=False, allow_infinity=False),
    exponent=st.integers(-100, 100),
)
def test_counts_are_the_nearest_with_ties_to_even(value, exponent):
    x = torch.tensor([value])
    unit_exponent = torch.tensor([exponent], dtype=torch.int8)
    exact = math.ldexp(value, -exponent)
    if abs(exact) > 2**30:
        with pytest.raises(OverflowError, match=r"x\[0\]"):
            to_counts(x, unit_exponent)
    else:
        assert int(to_counts(x, unit_exponent)) == round(exact)


def test_counts_name_the_first_that_overflows():
    x = torch.tensor([1.0, float("nan"), 1e30])
    with pytest.raises(OverflowError, match=r"x\[1\] = nan .* 2\*\*-22"):
        to_counts(x, torch.tensor([-22], dtype=torch.int8))


@settings(deadline=None, max_examples=200)
@given(count=st.integers(-(2**31), 2**31 - 1), exponent=st.integers(-100, 90))
def test_float_is_the_nearest_to_the_count(count, exponent):
    value = to_float(
        torch.tensor([count], dtype=torch.int32), torch.tensor([exponent], dtype=torch.int8)
    )
    assert float(value) == float(torch.tensor(float(count)).float()) * 2.0**exponent


@pytest.mark.parametrize("n", SIZES)
def test_counts_survive_the_way_through_float(n):
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(-(2**22), 2**22 + 1, (n,), generator=generator, dtype=torch.int32)
    chunks = -(-n // 4096)
    unit_exponent = torch.randint(-100, 101, (chunks,), generator=generator).to(torch.int8)
    assert torch.equal(to_counts(to_float(counts, unit_exponent), unit_exponent), counts)


def test_power_of_two_stays_in_range():
    exponent = torch.arange(-128, 128, dtype=torch.int8)
    expected = 2.0 ** exponent.double().clamp(-100, 100)
    assert torch.equal(power_of_two(exponent).double(), expected)


@settings(deadline=None, max_examples=200)
@given(
    scale=st.floats(0, 2.0**127, width=32),
    level=st.integers(-128, 127),
    exponent=st.integers(-100, 100),
    shares=st.integers(1, 2**22),
)
def test_share_counts_are_bounded_so_that_all_shares_fit(scale, level, exponent, shares):
    count = share_counts(
        torch.tensor([scale]),
        torch.tensor([[level]], dtype=torch.int32),
        torch.tensor([exponent], dtype=torch.int8),
        shares=shares,
    )
    assert abs(int(count)) * shares <= 2**22
    assert int(count) * level >= 0
