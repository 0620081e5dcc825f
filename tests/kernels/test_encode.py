import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import ALL_FORMATS, KINDS, SHARES, SIZES, format_name, make

from gossamer.kernels import CHUNK_ELEMENTS, Format, encode
from gossamer.kernels.encode import reference

formats = pytest.mark.parametrize("format", ALL_FORMATS, ids=format_name)


def assert_matches_reference(run, case, format, shares):
    expected_base, base = case.base.clone(), case.base.clone()
    expected, expected_skipped = reference.encode(
        case.x, expected_base, case.unit_exponent, format=format, shares=shares
    )
    payload, skipped = run(
        "encode", "encode", case.x, base, case.unit_exponent, format=format, shares=shares
    )
    assert torch.equal(payload, expected)
    assert torch.equal(base, expected_base)
    assert torch.equal(skipped, expected_skipped)


@formats
@pytest.mark.parametrize("n", SIZES)
def test_encode_matches_reference_at_every_size(run, format, n):
    assert_matches_reference(run, make("trained", n), format, shares=3)


@formats
@pytest.mark.parametrize("kind", KINDS)
def test_encode_matches_reference_on_every_kind(run, format, kind):
    assert_matches_reference(run, make(kind, 4999), format, shares=2)


@formats
@pytest.mark.parametrize("shares", [*SHARES, 2**22])
def test_encode_matches_reference_for_every_number_of_shares(run, format, shares):
    assert_matches_reference(run, make("trained", 4097), format, shares)


def test_encode_matches_reference_on_any_bits(run):
    examples = 10 if run.backend == "interpreter" else 150

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        kind=st.sampled_from(KINDS),
        n=st.integers(0, 2 * CHUNK_ELEMENTS + 1),
        seed=st.integers(0, 2**32),
        format=st.sampled_from(ALL_FORMATS),
        shares=st.integers(1, 2**22),
    )
    def check(kind, n, seed, format, shares):
        assert_matches_reference(run, make(kind, n, seed), format, shares)

    check()


@formats
def test_encode_selects_the_largest_and_ties_to_the_lower_index(run, format):
    x = torch.zeros(CHUNK_ELEMENTS)
    largest = torch.randperm(CHUNK_ELEMENTS, generator=torch.Generator().manual_seed(1))
    x[largest[: format.k // 2]] = -2.0
    x[largest[format.k // 2 : 3 * format.k]] = 1.0
    base = torch.zeros(CHUNK_ELEMENTS, dtype=torch.int32)
    unit_exponent = torch.tensor([-21], dtype=torch.int8)
    run("encode", "encode", x, base, unit_exponent, format=format, shares=1)
    ones = largest[format.k // 2 : 3 * format.k].sort().values[: format.k - format.k // 2]
    expected = torch.cat([largest[: format.k // 2], ones]).sort().values
    assert torch.equal(base.nonzero().flatten(), expected)
    assert torch.equal(base.sign()[expected], x.sign()[expected].to(torch.int32))


@formats
def test_encode_writes_the_documented_layout(run, format):
    """Decode one chunk with nothing but the layout of `gossamer.kernels.format`."""
    case = make("trained", CHUNK_ELEMENTS)
    difference = case.x - case.base.float() * 2.0 ** float(case.unit_exponent[0])
    payload, _ = run(
        "encode", "encode", case.x, case.base, case.unit_exponent, format=format, shares=1
    )
    bits = int.from_bytes(payload[:-2].numpy().tobytes(), "little")
    low_bits = {64: 6, 256: 4}[format.k]
    ones = [
        p
        for p in range(format.k + (CHUNK_ELEMENTS >> low_bits))
        if bits >> (format.k * low_bits + p) & 1
    ]
    indices = [
        ((p - j) << low_bits) | (bits >> (j * low_bits) & ((1 << low_bits) - 1))
        for j, p in enumerate(ones)
    ]
    expected = difference.abs().topk(format.k).indices.sort().values
    assert indices == expected.tolist()
    codes_at = format.k * low_bits + format.k + (CHUNK_ELEMENTS >> low_bits)
    codes = [
        bits >> (codes_at + j * format.bits) & ((1 << format.bits) - 1) for j in range(format.k)
    ]
    values = difference[expected]
    if format.bits == 8:
        negative = [code >= 128 for code in codes]
    else:
        negative = [bool(code & 1) for code in codes]
    assert negative == (values < 0).tolist()
    scale = payload[-2:].view(torch.bfloat16).float()
    assert torch.isfinite(scale)
    if format.bits == 1:
        torch.testing.assert_close(scale[0], values.abs().mean(), rtol=2**-8, atol=0)


@formats
def test_encode_reduces_the_difference(run, format):
    case = make("trained", 3 * CHUNK_ELEMENTS)
    unit = 2.0 ** case.unit_exponent.repeat_interleave(CHUNK_ELEMENTS).double()
    before = case.x.double() - case.base * unit
    run("encode", "encode", case.x, case.base, case.unit_exponent, format=format, shares=4)
    after = case.x.double() - case.base * unit
    best = before.view(3, -1).square().topk(format.k, dim=1).values.sum()
    removed = before.square().sum() - after.square().sum()
    # Share of the energy of the selected that each code captures.
    floor = {1: 0.8, 2: 0.85, 8: 0.999}[format.bits]
    assert floor * best < removed <= best * (1 + 1e-6)


@formats
def test_encode_again_sends_what_was_left(run, format):
    case = make("trained", 2 * CHUNK_ELEMENTS)
    unit = 2.0 ** case.unit_exponent.repeat_interleave(CHUNK_ELEMENTS).double()
    norms = []
    for _ in range(4):
        run("encode", "encode", case.x, case.base, case.unit_exponent, format=format, shares=1)
        norms.append(float((case.x.double() - case.base * unit).norm()))
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] < norms[0]


def test_encode_counts_what_it_leaves_out(run):
    case = make("equal", 5000)
    case.x[[3, 4097]] = torch.tensor([float("nan"), float("inf")])
    case.base[[7, 8, 4999]] = torch.tensor([2**30, -(2**31), 2**30], dtype=torch.int32)
    before = case.base.clone()
    _, skipped = run(
        "encode", "encode", case.x, case.base, case.unit_exponent, format=Format(64, 8), shares=1
    )
    assert skipped.tolist() == [2, 3]
    assert torch.equal(case.base[[3, 7, 8, 4097, 4999]], before[[3, 7, 8, 4097, 4999]])


def test_encode_never_wraps(run):
    case = make("brink", 4096)
    case.base[10:100] = 2**31 - 1
    case.x[0] = 1e6
    before = case.base.clone()
    run("encode", "encode", case.x, case.base, case.unit_exponent, format=Format(64, 1), shares=1)
    assert torch.equal(case.base[10:100], before[10:100])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda c: c._replace(x=c.x.double()), TypeError, "x is torch.float64"),
        (lambda c: c._replace(base=c.base.long()), TypeError, "base is torch.int64"),
        (lambda c: c._replace(x=c.x[:-1]), ValueError, r"x has shape \[99\]"),
        (lambda c: c._replace(x=c.x.repeat(2)[::2]), ValueError, "x has stride"),
        (lambda c: c._replace(x=c.x.view(10, 10)), ValueError, r"shape \[10, 10\]"),
        (
            lambda c: c._replace(unit_exponent=c.unit_exponent.repeat(2)),
            ValueError,
            r"unit_exponent has shape \[2\]; it must be \[1\]",
        ),
    ],
)
def test_encode_refuses_what_does_not_fit(change, error, words):
    case = change(make("trained", 100))
    with pytest.raises(error, match=words):
        encode(*case, format=Format(64, 2), shares=2)


@pytest.mark.parametrize("shares", [0, -1, 2**22 + 1])
def test_encode_refuses_impossible_shares(shares):
    with pytest.raises(ValueError, match=f"shares is {shares}"):
        encode(*make("trained", 100), format=Format(64, 2), shares=shares)


def test_encode_refuses_devices_without_kernels():
    case = [tensor.to("meta") for tensor in make("trained", 100)]
    with pytest.raises(ValueError, match="no kernels for tensors on meta"):
        encode(*case, format=Format(64, 2), shares=2)
