"""Encoding on a GPU: the specification of `reference.py`, one Triton program per chunk.

The smallest maximum of k groups bounds the k-th largest magnitude from below; bisection of the
magnitude bits from there stops as soon as exactly k remain. Their indices go to scratch in
ascending order and come back as a [k] vector that is quantized and packed. Between its loads and
its stores a chunk never leaves the program; x and base are read once. Launched without contraction
of multiply and add, so every result has the bits of the reference.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gossamer.kernels.fixed_point import MAX_STEP
from gossamer.kernels.format import chunk_count

# Constants that jitted functions read; Triton wants them declared as such.
CHUNK = tl.constexpr(4096)
LIMIT = tl.constexpr(2**30 - 2**26)
INFINITY_KEY = tl.constexpr(0x7F800000)
MAGNITUDE_MASK = tl.constexpr(0x7FFFFFFF)
SMALLEST_EXPONENT = tl.constexpr(40)
MAX_SCALE = tl.constexpr(0x7F7F)
MAX_EXPONENT = tl.constexpr(100)
# Adding and subtracting 1.5 * 2**23 rounds half to even up to 2**22.
ROUNDER = tl.constexpr(12582912.0)

# 64 registers let two programs share a multiprocessor, without spills.
LAUNCH = {
    "cuda": {"num_warps": 16, "maxnreg": 64, "enable_fp_fusion": False},
    "hip": {"num_warps": 8, "enable_fp_fusion": False},
}


@triton.jit
def power_of_two(exponent):
    """Give 2 ** exponent as float32; exponents beyond -100 and 100 count as these."""
    clamped = tl.minimum(tl.maximum(exponent.to(tl.int32), -MAX_EXPONENT), MAX_EXPONENT)
    return ((clamped + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def round_half_even(value):
    return (value + ROUNDER) - ROUNDER


@triton.jit
def share_count(scale, level, weight, inverse_unit, bound):
    """Round one share of scale * level to counts, as `fixed_point.share_counts` does."""
    counts = scale * level.to(tl.float32) * weight * inverse_unit
    counts = tl.minimum(tl.maximum(counts, -bound), bound)
    return round_half_even(counts).to(tl.int32)


@triton.jit
def _round_to_bfloat16(value):
    bits = value.to(tl.int32, bitcast=True)
    return tl.minimum((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, MAX_SCALE)


@triton.jit
def _difference(x, count, unit):
    """Give x - count * unit, zero where it cannot be encoded, and the two reasons why it cannot."""
    d = x - count.to(tl.float32) * unit
    not_finite = (d.to(tl.int32, bitcast=True) & MAGNITUDE_MASK) >= INFINITY_KEY
    beyond = (count > LIMIT) | (count < -LIMIT)
    return tl.where(not_finite | beyond, 0.0, d), not_finite, beyond


@triton.jit
def _select(key, K: tl.constexpr):
    """Select the K largest of key [CHUNK], ties to the lower index.

    returns: selected [CHUNK] bool; place [CHUNK] int32, the rank by index of each selected
    """
    group = tl.max(tl.reshape(key, [K, CHUNK // K]), axis=1)  # [K]
    low = tl.min(group, axis=0)
    high = tl.max(group, axis=0) + 1
    # Invariant: at least K keys reach low, and fewer than K reach high.
    reach_low = tl.sum((key >= low).to(tl.int32), axis=0)
    reach_high = low * 0
    while (reach_low != K) & (high - low > 1):
        middle = low + (high - low) // 2
        reach = tl.sum((key >= middle).to(tl.int32), axis=0)
        enough = reach >= K
        low = tl.where(enough, middle, low)
        reach_low = tl.where(enough, reach, reach_low)
        high = tl.where(enough, high, middle)
        reach_high = tl.where(enough, reach_high, reach)
    ties = K - reach_high
    sure = (key >= high).to(tl.int32)  # [CHUNK]
    tied = (key >= low).to(tl.int32) - sure  # [CHUNK]
    # Both ranks in one scan: neither exceeds 4096, so 16 bits hold each.
    rank = tl.cumsum(sure | (tied << 16), axis=0)
    tied_before = (rank >> 16) - tied
    selected = (sure > 0) | ((tied > 0) & (tied_before < ties))
    place = (rank & 0xFFFF) - sure + tl.minimum(tied_before, ties)
    return selected, place


@triton.jit(do_not_specialize=["n", "shares"])
def _encode_kernel(
    x_ptr,
    base_ptr,
    unit_exponent_ptr,
    record_ptr,
    scale_ptr,
    skipped_ptr,
    index_ptr,
    n,
    shares,
    weight,
    bound,
    K: tl.constexpr,
    BITS: tl.constexpr,
    LOW_BITS: tl.constexpr,
    LOW_WORDS: tl.constexpr,
    LOW_BLOCK: tl.constexpr,
    HIGH_WORDS: tl.constexpr,
    RECORD_WORDS: tl.constexpr,
):
    chunk = tl.program_id(0).to(tl.int64)
    start = chunk * CHUNK
    lane = tl.arange(0, CHUNK)  # [CHUNK]
    # Without a mask the loads are 16 bytes wide whatever n is.
    if start + CHUNK <= n:
        x = tl.load(x_ptr + start + lane)  # [CHUNK]
        count = tl.load(base_ptr + start + lane)  # [CHUNK]
    else:
        x = tl.load(x_ptr + start + lane, mask=start + lane < n, other=0.0)
        count = tl.load(base_ptr + start + lane, mask=start + lane < n, other=0)
    unit_exponent = tl.load(unit_exponent_ptr + chunk).to(tl.int32)

    unit = power_of_two(unit_exponent)
    d, not_finite, beyond = _difference(x, count, unit)
    left_out = tl.sum(not_finite.to(tl.int32) | (beyond.to(tl.int32) << 16), axis=0)
    tl.atomic_add(skipped_ptr, left_out & 0xFFFF, mask=(left_out & 0xFFFF) > 0, sem="relaxed")
    tl.atomic_add(skipped_ptr + 1, left_out >> 16, mask=(left_out >> 16) > 0, sem="relaxed")

    selected, place = _select(d.to(tl.int32, bitcast=True) & MAGNITUDE_MASK, K)
    index_ptr += chunk * K
    tl.store(index_ptr + place, lane, mask=selected)
    tl.debug_barrier()
    j = tl.arange(0, K)  # [K]
    index = tl.load(index_ptr + j)  # [K]
    # Fetching these few again, from the cache, costs less than holding 4096 differences in
    # registers.
    inside = start + index < n
    x = tl.load(x_ptr + start + index, mask=inside, other=0.0)  # [K]
    count = tl.load(base_ptr + start + index, mask=inside, other=0)  # [K]
    d, _, _ = _difference(x, count, unit)

    key = d.to(tl.int32, bitcast=True) & MAGNITUDE_MASK
    negative = (d < 0).to(tl.int32)
    largest = tl.max(key, axis=0)
    exponent = tl.maximum(largest >> 23, 1)
    empty = exponent < SMALLEST_EXPONENT
    if BITS == 8:
        scale_bits = _round_to_bfloat16(largest.to(tl.float32, bitcast=True) * (1.0 / 127))
        scale_bits = tl.where(empty, 0, scale_bits)
        step = (scale_bits << 16).to(tl.float32, bitcast=True)
        # An empty chunk divides by one instead of zero.
        quotient = tl.div_rn(tl.where(empty, 0.0, d), tl.zeros_like(d) + tl.where(empty, 1.0, step))
        level = tl.minimum(tl.maximum(round_half_even(quotient).to(tl.int32), -127), 127)
        code = level & 0xFF
    else:
        # 20 leading bits of each magnitude, aligned to the largest: their sums fit in 32 bits.
        own = key >> 23
        mantissa = (key & 0x7FFFFF) | tl.where(own > 0, 0x800000, 0)
        aligned = (mantissa >> 4) >> tl.minimum(exponent - tl.maximum(own, 1), 31)
        quotient = tl.sum(aligned, axis=0) // K
        if BITS == 1:
            level = 1 - 2 * negative
            code = negative
        else:
            high = (8 * aligned > 9 * quotient).to(tl.int32)
            level = 2 + high
            quotient = tl.sum(level * aligned, axis=0) // tl.sum(level * level, axis=0)
            level = level * (1 - 2 * negative)
            code = negative | (high << 1)
        multiplier = ((tl.maximum(exponent, SMALLEST_EXPONENT) - 19) << 23).to(
            tl.float32, bitcast=True
        )
        scale_bits = _round_to_bfloat16(quotient.to(tl.float32) * multiplier)
        scale_bits = tl.where(empty, 0, scale_bits)
        step = (scale_bits << 16).to(tl.float32, bitcast=True)
        code = tl.where(empty, 0, code)
    tl.store(scale_ptr + chunk, scale_bits.to(tl.int16))

    record_ptr += chunk * RECORD_WORDS
    # A low word holds parts of at most FIELDS fields, each shifted into its place.
    FIELDS: tl.constexpr = 32 // LOW_BITS + 2
    word = tl.arange(0, LOW_BLOCK)  # [LOW_BLOCK]
    low = tl.zeros([LOW_BLOCK], tl.int32)
    for t in tl.static_range(FIELDS):
        field = word * 32 // LOW_BITS + t
        shift = field * LOW_BITS - word * 32
        within = (field < K) & (shift < 32)
        part = tl.load(index_ptr + field, mask=within, other=0) & ((1 << LOW_BITS) - 1)
        left = part << tl.minimum(tl.maximum(shift, 0), 31)
        low |= tl.where(shift >= 0, left, part >> tl.maximum(-shift, 0))
    tl.store(record_ptr + word, low, mask=word < LOW_WORDS)

    # Bits of one word are distinct, so their sum is their union.
    at = (index >> LOW_BITS) + j  # [K]
    word = tl.arange(0, HIGH_WORDS)  # [HIGH_WORDS]
    bit = tl.where((at >> 5)[None, :] == word[:, None], 1 << (at & 31)[None, :], 0)
    tl.store(record_ptr + LOW_WORDS + word, tl.sum(bit, axis=1))

    PER_WORD: tl.constexpr = 32 // BITS
    shifted = (
        tl.reshape(code, [K // PER_WORD, PER_WORD]) << (tl.arange(0, PER_WORD) * BITS)[None, :]
    )
    word = tl.arange(0, K // PER_WORD)
    tl.store(record_ptr + LOW_WORDS + HIGH_WORDS + word, tl.sum(shifted, axis=1))

    times = share_count(step, level, weight, power_of_two(-unit_exponent), bound)
    total = count.to(tl.int64) + (times * shares).to(tl.int64)
    fits = total == total.to(tl.int32).to(tl.int64)
    tl.store(base_ptr + start + index, total.to(tl.int32), mask=inside & fits)
    lost = tl.sum((inside & (fits == 0)).to(tl.int32), axis=0)
    tl.atomic_add(skipped_ptr + 1, lost, mask=lost > 0, sem="relaxed")


def kernel_constants(format):
    """Give the constant arguments of the kernel for a format."""
    return {
        "K": format.k,
        "BITS": format.bits,
        "LOW_BITS": format.low_bits,
        "LOW_WORDS": format.low_words,
        "LOW_BLOCK": triton.next_power_of_2(format.low_words),
        "HIGH_WORDS": format.high_words,
        "RECORD_WORDS": format.record_words,
    }


def encode(x, base, unit_exponent, *, format, shares):
    """See `gossamer.kernels.encode.encode`."""
    n = x.numel()
    chunks = chunk_count(n)
    payload = torch.empty(format.payload_bytes(n), dtype=torch.uint8, device=x.device)
    skipped = torch.zeros(2, dtype=torch.int32, device=x.device)
    if chunks == 0:
        return payload, skipped
    record_bytes = 4 * format.record_words * chunks
    index = torch.empty(chunks * format.k, dtype=torch.int32, device=x.device)
    with on_device(x):
        _encode_kernel[(chunks,)](
            x.detach(),
            base,
            unit_exponent,
            payload[:record_bytes].view(torch.int32),
            payload[record_bytes:].view(torch.int16),
            skipped,
            index,
            n,
            shares,
            1.0 / shares,
            float(MAX_STEP // shares),
            **kernel_constants(format),
            **LAUNCH["hip" if torch.version.hip else "cuda"],
        )
    return payload, skipped


def on_device(tensor):
    """Make the tensor's GPU the current one, as Triton launches on that."""
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)
