import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import ALL_FORMATS, KINDS, SIZES, format_name, make

from gossamer.kernels import CHUNK_ELEMENTS, Format, check, decode, encode
from gossamer.kernels.decode import reference

formats = pytest.mark.parametrize("format", ALL_FORMATS, ids=format_name)


def payload_of(case, format, shares):
    return encode(
        case.x, case.base.clone(), case.unit_exponent, format=format, shares=shares
    ).payload


def payload_with(format, indices, scale=1.0):
    """A payload of one chunk with these indices and all codes zero, built bit by bit."""
    bits = 0
    for j, index in enumerate(indices):
        bits |= (index & ((1 << format.low_bits) - 1)) << (j * format.low_bits)
        bits |= 1 << (32 * format.low_words + (index >> format.low_bits) + j)
    record = torch.frombuffer(
        bytearray(bits.to_bytes(4 * format.record_words, "little")), dtype=torch.uint8
    )
    tail = torch.tensor([scale], dtype=torch.bfloat16).view(torch.uint8)
    return torch.cat([record, tail])


def assert_matches_reference(run, case, payloads, shares, multiplicity, format, *, model=True):
    expected_x, x = (case.x.clone(), case.x.clone()) if model else (None, None)
    expected_base, base = case.base.clone(), case.base.clone()
    expected = reference.decode(
        payloads, shares, multiplicity, expected_x, expected_base, case.unit_exponent, format=format
    )
    status = run(
        "decode",
        "decode",
        payloads,
        shares,
        multiplicity,
        x,
        base,
        case.unit_exponent,
        format=format,
    )
    assert torch.equal(status, expected)
    assert torch.equal(base, expected_base)
    if model:
        # Bits, so that NaNs and signed zeros count.
        assert torch.equal(x.view(torch.int32), expected_x.view(torch.int32))
    return status


@formats
@pytest.mark.parametrize("n", SIZES)
def test_decode_matches_reference_at_every_size(run, format, n):
    case = make("trained", n)
    payloads = [payload_of(make("trained", n, seed), format, 3) for seed in (1, 2, 3)]
    assert_matches_reference(run, case, payloads, [3, 1, 64], [1, -2, 63], format)
    assert_matches_reference(run, case, payloads[:1], [5], [-4], format)


@formats
@pytest.mark.parametrize("kind", ["wide", "huge", "limit", "brink", "bits", "not_finite"])
def test_decode_matches_reference_on_every_kind(run, format, kind):
    case = make(kind, 4999)
    other = make(kind, 4999, seed=1)._replace(unit_exponent=case.unit_exponent)
    payloads = [payload_of(c, format, 2) for c in (case, other)]
    assert_matches_reference(run, case, payloads, [2, 2], [1, -(2**16)], format)


@formats
def test_decode_without_a_model_gives_the_same_base(run, format):
    case = make("trained", 4999)
    payloads = [payload_of(case, format, 2)]
    assert_matches_reference(run, case, payloads, [2], [1], format, model=False)


def test_decode_of_no_payload_changes_nothing(run):
    case = make("trained", 5000)
    status = assert_matches_reference(run, case, [], [], [], Format(64, 1))
    assert status.tolist() == [0, 0]


def test_decode_reads_payloads_at_odd_addresses(run):
    """As they lie in a receive buffer behind a header."""
    format = Format(64, 1)
    case = make("trained", 4999)
    payload = payload_of(case, format, 2)
    shifted = torch.empty(payload.numel() + 1, dtype=torch.uint8)[1:]
    shifted.copy_(payload)
    assert_matches_reference(run, case, [shifted], [2], [1], format)
    assert_matches_reference(run, case, [shifted, payload], [2, 2], [1, -1], format)


@formats
@pytest.mark.parametrize("first", [0, 1], ids=["lowest", "highest"])
def test_decode_reads_extreme_supports(run, format, first):
    """The first k and the last k indices put all bits at one end of the high words."""
    start = (CHUNK_ELEMENTS - format.k) * first
    payload = payload_with(format, range(start, start + format.k), scale=2.0**-20)
    check(payload, CHUNK_ELEMENTS, format)
    base = torch.zeros(CHUNK_ELEMENTS, dtype=torch.int32)
    unit_exponent = torch.tensor([-24], dtype=torch.int8)
    status = run("decode", "decode", [payload], [1], [1], None, base, unit_exponent, format=format)
    level = {1: 1, 2: 2, 8: 0}[format.bits]
    assert status.tolist() == [0, 0]
    assert torch.equal(base[start : start + format.k], torch.full((format.k,), 16 * level).int())
    assert base.count_nonzero() == (format.k if level else 0)


@formats
def test_encode_then_decode_restores_random_supports(run, format):
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(CHUNK_ELEMENTS, generator=generator)[: format.k].sort().values
        x = torch.zeros(CHUNK_ELEMENTS)
        x[chosen] = 1 - 2.0 * torch.randint(0, 2, (format.k,), generator=generator)
        base = torch.zeros(CHUNK_ELEMENTS, dtype=torch.int32)
        unit_exponent = torch.tensor([-22], dtype=torch.int8)
        payload, _ = encode(x, base, unit_exponent, format=format, shares=1)
        restored = torch.zeros(CHUNK_ELEMENTS)
        base.zero_()
        run("decode", "decode", [payload], [1], [1], restored, base, unit_exponent, format=format)
        assert torch.equal(restored.sign(), x)


def test_decode_counts_and_omits_what_would_overflow(run):
    format = Format(64, 1)
    payload = payload_with(format, range(64), scale=1.0)
    base = torch.zeros(4096, dtype=torch.int32)
    base[:4] = torch.tensor([2**31 - 1, 2**31 - 2**22, 2**31 - 2**22 - 1, -(2**31)])
    x = torch.zeros(4096)
    unit_exponent = torch.tensor([-22], dtype=torch.int8)
    status = run("decode", "decode", [payload], [1], [1], x, base, unit_exponent, format=format)
    assert status.tolist() == [0, 2]
    assert base[:5].tolist() == [2**31 - 1, 2**31 - 2**22, 2**31 - 1, 2**22 - 2**31, 2**22]
    assert x[:5].tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("too_few_bits", payload_with(Format(64, 1), range(63))),
        ("repeated", payload_with(Format(64, 1), [5, *range(5, 68)])),
        ("falling", payload_with(Format(64, 1), [7, 6, *range(64, 126)])),
        ("past_the_end", payload_with(Format(64, 1), [*range(63), 4096])),
        ("infinite_scale", payload_with(Format(64, 1), range(64), float("inf"))),
        ("nan_scale", payload_with(Format(64, 1), range(64), float("nan"))),
        ("negative_scale", payload_with(Format(64, 1), range(64), -1.0)),
        ("negative_zero_scale", payload_with(Format(64, 1), range(64), -0.0)),
    ],
)
def test_decode_leaves_a_corrupt_record_out(run, name, payload):
    format = Format(64, 1)
    case = make("trained", 4096)
    before = case.base.clone(), case.x.clone()
    status = assert_matches_reference(run, case, [payload], [1], [1], format)
    run(
        "decode",
        "decode",
        [payload],
        [1],
        [1],
        case.x,
        case.base,
        case.unit_exponent,
        format=format,
    )
    assert status.tolist() == [1, 0]
    assert torch.equal(case.base, before[0])
    assert torch.equal(case.x, before[1])
    with pytest.raises(ValueError, match="corrupt in chunk 0"):
        check(payload, 4096, format)


def test_decode_of_any_bytes_matches_reference_and_stays_inside(run):
    examples = 15 if run.backend == "interpreter" else 200

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        kind=st.sampled_from(KINDS),
        n=st.integers(1, 2 * CHUNK_ELEMENTS),
        seed=st.integers(0, 2**32),
        format=st.sampled_from(ALL_FORMATS),
        damaged=st.sampled_from([0, 1, 2, 8, None]),
    )
    def property(kind, n, seed, format, damaged):
        case = make(kind, n, seed)
        payload = payload_of(case, format, 3)
        generator = torch.Generator().manual_seed(seed)
        size = payload.numel()
        noise = torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8)
        places = (
            slice(None)
            if damaged is None
            else torch.randint(0, size, (damaged,), generator=generator)
        )
        payload[places] = noise[places]

        margin = 4096
        x_all = torch.full((n + 2 * margin,), float("nan"))
        base_all = torch.full((n + 2 * margin,), -0x5A5A5A5B, dtype=torch.int32)
        inner = slice(margin, margin + n)
        x_all[inner], base_all[inner] = case.x, case.base
        inside = case._replace(x=x_all[inner], base=base_all[inner])
        status = assert_matches_reference(run, inside, [payload], [3], [1], format)
        run(
            "decode",
            "decode",
            [payload],
            [3],
            [1],
            inside.x,
            inside.base,
            case.unit_exponent,
            format=format,
        )
        outside = torch.cat([base_all[:margin], base_all[-margin:]])
        assert (outside == -0x5A5A5A5B).all()
        assert torch.cat([x_all[:margin], x_all[-margin:]]).isnan().all()

        try:
            check(payload, n, format)
            accepted = True
        except ValueError:
            accepted = False
        assert accepted == (int(status[0]) == 0)

    property()


def test_decode_accepts_stacked_payloads():
    format = Format(64, 2)
    case = make("trained", 5000)
    payloads = [payload_of(make("trained", 5000, seed), format, 3) for seed in (1, 2)]
    other = case._replace(x=case.x.clone(), base=case.base.clone())
    decode(payloads, [3, 3], [1, 1], *case, format=format)
    decode(torch.stack(payloads), [3, 3], [1, 1], *other, format=format)
    assert torch.equal(case.x, other.x)
    assert torch.equal(case.base, other.base)


@pytest.mark.parametrize(
    ("shares", "multiplicity", "words"),
    [
        ([1, 2], [1], "1 payloads, 2 shares and 1 multiplicities"),
        ([0], [1], "shares is 0"),
        ([1], [0], "multiplicity is 0"),
        ([1], [2**16 + 1], "multiplicity is 65537"),
    ],
)
def test_decode_refuses_arguments_that_do_not_fit(shares, multiplicity, words):
    format = Format(64, 2)
    case = make("trained", 5000)
    with pytest.raises(ValueError, match=words):
        decode([payload_of(case, format, 2)], shares, multiplicity, *case, format=format)


@pytest.mark.parametrize("excess", [-1, 1])
def test_decode_and_check_refuse_a_wrong_length(excess):
    format = Format(64, 2)
    case = make("trained", 5000)
    size = format.payload_bytes(5000)
    payload = torch.zeros(size + excess, dtype=torch.uint8)
    with pytest.raises(ValueError, match=rf"\[{size + excess}\]"):
        decode([payload], [2], [1], *case, format=format)
    with pytest.raises(ValueError, match=rf"\[{size + excess}\].*\[{size}\]"):
        check(payload, 5000, format)


@formats
@pytest.mark.parametrize("n", SIZES)
def test_check_accepts_what_encode_wrote(format, n):
    check(payload_of(make("trained", n), format, 2), n, format)
