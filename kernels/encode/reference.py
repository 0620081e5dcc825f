"""The specification of encoding, in plain torch operations.

    d = x - float32(base) * 2**e; zero where it is not finite or base is near its limit
    selected = the k largest |d| of a chunk, ties to the lower index, in ascending order
    scale = bfloat16: for 1 bit the mean of |d|; for 2 bits least squares for the levels 2 and 3,
            split at 9/8 of the mean; for 8 bits max |d| / 127
    count = round(scale * level / shares / 2**e);  base += shares * count

Scales come from the 20 leading bits of each |d| in integers, so that every backend rounds alike.
Bytes: see `gossamer.kernels.format`. Invariant: x - base * 2**e shrinks by what the payload says.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.kernels.fixed_point import ENCODE_LIMIT, power_of_two, share_counts
from gossamer.kernels.format import CHUNK_ELEMENTS, MAX_SCALE_BITS, Format, chunk_count

MAGNITUDE_MASK = 0x7FFFFFFF
INFINITY_KEY = 0x7F800000
# Chunks whose largest difference is below 2**(40 - 127) are sent as zeros.
SMALLEST_EXPONENT = 40


def encode(
    x: Tensor, base: Tensor, unit_exponent: Tensor, *, format: Format, shares: int
) -> tuple[Tensor, Tensor]:
    """See `gossamer.kernels.encode.encode`."""
    n, k = x.numel(), format.k
    chunks = chunk_count(n)
    if chunks == 0:
        return x.new_empty(0, dtype=torch.uint8), x.new_zeros(2, dtype=torch.int32)
    padding = (0, chunks * CHUNK_ELEMENTS - n)
    value = F.pad(x, padding).view(chunks, CHUNK_ELEMENTS)
    count = F.pad(base, padding).view(chunks, CHUNK_ELEMENTS)

    d = value - count.to(torch.float32) * power_of_two(unit_exponent)[:, None]
    not_finite = ~torch.isfinite(d)
    beyond = (count > ENCODE_LIMIT) | (count < -ENCODE_LIMIT)
    d = torch.where(not_finite | beyond, torch.zeros_like(d), d)
    key = d.view(torch.int32) & MAGNITUDE_MASK

    order = torch.sort(key, dim=1, descending=True, stable=True).indices
    index = order[:, :k].sort(dim=1).values
    d, key = d.gather(1, index), key.gather(1, index)
    scale_bits, code, level = quantize(d, key, format)

    low = index & ((1 << format.low_bits) - 1)
    unary = torch.zeros(chunks, format.high_bits, dtype=torch.int64, device=x.device)
    unary.scatter_(1, (index >> format.low_bits) + torch.arange(k, device=x.device), 1)
    records = torch.cat(
        [pack(low, format.low_bits), pack(unary, 1), pack(code, format.bits)], dim=1
    )
    payload = torch.cat(
        [
            records.view(torch.uint8).flatten(),
            scale_bits.to(torch.int16).view(torch.uint8),
        ]
    )

    scale = (scale_bits << 16).view(torch.float32)
    step = share_counts(scale, level, unit_exponent, shares=shares).to(torch.int64) * shares
    flat = index + torch.arange(chunks, device=x.device)[:, None] * CHUNK_ELEMENTS
    inside = flat < n
    flat, step = flat[inside], step[inside]
    total = base[flat].to(torch.int64) + step
    fits = total == total.to(torch.int32)
    base[flat[fits]] = total[fits].to(torch.int32)
    skipped = torch.stack([not_finite.sum(), beyond.sum() + (~fits).sum()]).to(torch.int32)
    return payload, skipped


def quantize(d: Tensor, key: Tensor, format: Format) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize the selected differences of each chunk.

    d:       [chunks, k] float32
    key:     [chunks, k] int32; bits of |d|
    returns: scale [chunks] int32, bits of a bfloat16; code [chunks, k] int64;
             level [chunks, k] int32
    """
    largest = key.amax(dim=1)
    exponent = (largest >> 23).clamp(min=1)
    empty = exponent < SMALLEST_EXPONENT
    negative = (d < 0).to(torch.int32)

    if format.bits == 8:
        scale = largest.view(torch.float32) * torch.tensor(1 / 127, dtype=torch.float32)
        scale_bits = torch.where(empty, 0, round_to_bfloat16(scale))
        step = (scale_bits << 16).view(torch.float32)[:, None]
        level = torch.round(torch.where(step > 0, d / step, torch.zeros_like(d)))
        level = level.clamp(-127, 127).to(torch.int32)
        return scale_bits, (level & 0xFF).to(torch.int64), level

    # 20 leading bits of each magnitude, aligned to the largest: their sums fit in 32 bits.
    own = (key >> 23).clamp(min=1)
    mantissa = (key & 0x7FFFFF) | ((key >> 23 > 0).to(torch.int32) << 23)
    aligned = (mantissa >> 4) >> (exponent[:, None] - own).clamp(max=31)
    mean = aligned.sum(dim=1) // format.k
    if format.bits == 1:
        level, code = torch.ones_like(aligned), negative
        quotient = mean
    else:
        high = (8 * aligned > 9 * mean[:, None]).to(torch.int32)
        level, code = 2 + high, negative | (high << 1)
        quotient = (level * aligned).sum(dim=1) // (level * level).sum(dim=1)
    multiplier = (exponent.clamp(min=SMALLEST_EXPONENT) - 19) << 23
    scale = quotient.to(torch.float32) * multiplier.view(torch.float32)
    scale_bits = torch.where(empty, 0, round_to_bfloat16(scale))
    code = torch.where(empty[:, None], 0, code)
    return scale_bits, code.to(torch.int64), level * (1 - 2 * negative)


def round_to_bfloat16(value: Tensor) -> Tensor:
    """Give the bits of the nearest finite bfloat16, half to even, of values from zero."""
    bits = value.view(torch.int32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).clamp(max=MAX_SCALE_BITS)


def pack(field: Tensor, width: int) -> Tensor:
    """Pack fields of `width` bits into words, the lowest bits first.

    field:   [chunks, m] int64, each below 2**width; m * width divides by 32
    returns: [chunks, m * width / 32] int32
    """
    bit = (field[:, :, None] >> torch.arange(width, device=field.device)) & 1
    word = bit.view(field.shape[0], -1, 32) << torch.arange(32, device=field.device)
    return word.sum(dim=2).to(torch.int32)
