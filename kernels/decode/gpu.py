"""Decoding on a GPU: the specification of `reference.py`, one Triton program per chunk.

A lane stands for a bit of the high section: a scan gives the rank of a set bit, and rank and
position give the index. Payloads are applied one after the other, with a barrier between them,
because they may touch the same element. A record is judged as a whole, and every load and store of
one that is not valid is masked.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gossamer.kernels.encode.gpu import CHUNK, MAX_SCALE, on_device, power_of_two, share_count
from gossamer.kernels.fixed_point import MAX_STEP
from gossamer.kernels.format import chunk_count
from gossamer.kernels.launch import stack_rows

# 128 threads, as many as the shortest high section has bits: with more, a lane would be held twice,
# and one copy could read what the other has already added to.
LAUNCH = {
    "cuda": {"num_warps": 4, "enable_fp_fusion": False},
    "hip": {"num_warps": 2, "enable_fp_fusion": False},
}


@triton.jit
def _read_field(word_ptr, j, mask, WIDTH: tl.constexpr):
    """Give fields j of `WIDTH` bits; one may straddle two words."""
    bit = j * WIDTH
    first = tl.load(word_ptr + (bit >> 5), mask=mask, other=0)
    shift = bit & 31
    # Shift as unsigned, so that no sign comes in from above.
    field = (first.to(tl.uint32, bitcast=True) >> shift.to(tl.uint32)).to(tl.int32, bitcast=True)
    if 32 % WIDTH != 0:
        straddles = shift + WIDTH > 32
        second = tl.load(word_ptr + (bit >> 5) + 1, mask=mask & straddles, other=0)
        field |= tl.where(straddles, second << ((32 - shift) & 31), 0)
    return field & ((1 << WIDTH) - 1)


@triton.jit(do_not_specialize=["n", "payloads", "row_words"])
def _decode_kernel(
    record_ptr,
    scale_ptr,
    weight_ptr,
    bound_ptr,
    multiplicity_ptr,
    x_ptr,
    base_ptr,
    unit_exponent_ptr,
    status_ptr,
    n,
    payloads,
    row_words,
    K: tl.constexpr,
    BITS: tl.constexpr,
    LOW_BITS: tl.constexpr,
    LOW_WORDS: tl.constexpr,
    HIGH_BITS: tl.constexpr,
    HIGH_BLOCK: tl.constexpr,
    RECORD_WORDS: tl.constexpr,
    HAS_X: tl.constexpr,
):
    chunk = tl.program_id(0).to(tl.int64)
    start = chunk * CHUNK
    unit_exponent = tl.load(unit_exponent_ptr + chunk).to(tl.int32)
    unit = power_of_two(unit_exponent)
    inverse_unit = power_of_two(-unit_exponent)
    at = tl.arange(0, HIGH_BLOCK)  # [HIGH_BLOCK]
    # Triton 3.6 cannot interpret a range of a tensor.
    r = payloads * 0
    while r < payloads:
        low_ptr = record_ptr + r * row_words.to(tl.int64) + chunk * RECORD_WORDS
        high_ptr = low_ptr + LOW_WORDS
        code_ptr = high_ptr + HIGH_BITS // 32
        scale_bits = tl.load(scale_ptr + r * row_words.to(tl.int64) * 2 + chunk).to(tl.int32)
        weight = tl.load(weight_ptr + r)
        bound = tl.load(bound_ptr + r)
        multiplicity = tl.load(multiplicity_ptr + r).to(tl.int64)

        word = tl.load(high_ptr + (at >> 5), mask=at < HIGH_BITS, other=0)
        before = tl.load(high_ptr + ((at - 1) >> 5), mask=(at > 0) & (at < HIGH_BITS), other=0)
        bit = (word >> (at & 31)) & 1  # [HIGH_BLOCK]
        follows = (before >> ((at - 1) & 31)) & bit  # [HIGH_BLOCK]
        rank = tl.cumsum(bit, axis=0) - 1  # [HIGH_BLOCK]
        entry = (bit > 0) & (rank < K)
        low = _read_field(low_ptr, rank, entry, LOW_BITS)
        index = ((at - rank) << LOW_BITS) | low
        # High parts never fall; where one repeats, the low parts must rise.
        preceding = _read_field(low_ptr, rank - 1, entry & (follows > 0), LOW_BITS)
        wrong = (bit > 0) & ((index >= CHUNK) | ((follows > 0) & (low <= preceding)))
        faults = tl.sum(wrong.to(tl.int32), axis=0)
        faults += (tl.sum(bit, axis=0) != K).to(tl.int32)
        # The 16 bits are loaded as signed: a scale with a sign is negative.
        faults += (scale_bits < 0).to(tl.int32) + (scale_bits > MAX_SCALE).to(tl.int32)
        valid = faults == 0

        code = _read_field(code_ptr, rank, entry, BITS)
        if BITS == 8:
            level = (code ^ 0x80) - 0x80
        elif BITS == 1:
            level = 1 - 2 * code
        else:
            level = (2 + (code >> 1)) * (1 - 2 * (code & 1))
        step = tl.where(valid, scale_bits << 16, 0).to(tl.float32, bitcast=True)
        delta = share_count(step, level, weight, inverse_unit, bound).to(tl.int64) * multiplicity

        # A bit exceeds the faults where it is set in a record without any.
        applied = (bit > faults) & (start + index < n)
        own = tl.load(base_ptr + start + index, mask=applied, other=0)
        total = own.to(tl.int64) + delta
        fits = total == total.to(tl.int32).to(tl.int64)
        tl.store(base_ptr + start + index, total.to(tl.int32), mask=applied & fits)
        if HAS_X:
            value = tl.load(x_ptr + start + index, mask=applied & fits, other=0.0)
            value += delta.to(tl.float32) * unit
            tl.store(x_ptr + start + index, value, mask=applied & fits)
        lost = tl.sum((applied & (fits == 0)).to(tl.int32), axis=0)
        tl.atomic_add(status_ptr, 1, mask=valid == 0, sem="relaxed")
        tl.atomic_add(status_ptr + 1, lost, mask=lost > 0, sem="relaxed")
        tl.debug_barrier()
        r += 1


def kernel_constants(format, *, has_model):
    """Give the constant arguments of the kernel for a format."""
    return {
        "K": format.k,
        "BITS": format.bits,
        "LOW_BITS": format.low_bits,
        "LOW_WORDS": format.low_words,
        "HIGH_BITS": format.high_bits,
        "HIGH_BLOCK": triton.next_power_of_2(format.high_bits),
        "RECORD_WORDS": format.record_words,
        "HAS_X": has_model,
    }


def decode(payloads, shares, multiplicity, x, base, unit_exponent, *, format):
    """See `gossamer.kernels.decode.decode`."""
    n = base.numel()
    chunks = chunk_count(n)
    status = torch.zeros(2, dtype=torch.int32, device=base.device)
    if chunks == 0 or not payloads:
        return status
    stacked = stack_rows(payloads)
    row_words = stacked.shape[1] // 4
    record_bytes = 4 * format.record_words * chunks
    octets = stacked.flatten()
    with on_device(base):
        _decode_kernel[(chunks,)](
            octets[:record_bytes].view(torch.int32),
            octets[record_bytes : record_bytes + 2 * chunks].view(torch.int16),
            _to_device([1.0 / share for share in shares], torch.float32, base),
            _to_device([MAX_STEP // share for share in shares], torch.float32, base),
            _to_device(multiplicity, torch.int32, base),
            base if x is None else x.detach(),
            base,
            unit_exponent,
            status,
            n,
            len(payloads),
            row_words,
            **kernel_constants(format, has_model=x is not None),
            **LAUNCH["hip" if torch.version.hip else "cuda"],
        )
    return status


def _to_device(values, dtype, like):
    """Copy a few numbers to the tensor's device without waiting for it."""
    host = torch.tensor(values, dtype=dtype, pin_memory=like.is_cuda)
    return host.to(like.device, non_blocking=True)
