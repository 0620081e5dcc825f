"""The specification of decoding, in plain torch operations.

    i_j   = ((position of the j-th set high bit) - j) << l | low field j
    count = round(scale * level_j / shares / 2**e)
    base[i_j] += multiplicity * count            left out where the sum is not an int32
    x[i_j]    += float32(multiplicity * count) * 2**e

Bytes: see `gossamer.kernels.format`. Invariant: a count is what encoding added, divided by shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gossamer.kernels.fixed_point import power_of_two, share_counts
from gossamer.kernels.format import (
    CHUNK_ELEMENTS,
    MAX_SCALE_BITS,
    WORD_BYTES,
    Format,
    chunk_count,
)


class Records(NamedTuple):
    """The valid chunk records of a payload.

    valid: [chunks] bool
    indices: [valid chunks, k] int64, within the chunk
    level: [valid chunks, k] int32
    scale: [valid chunks] float32; the value is scale * level
    """

    valid: Tensor
    indices: Tensor
    level: Tensor
    scale: Tensor


def decode(
    payloads: Sequence[Tensor],
    shares: Sequence[int],
    multiplicity: Sequence[int],
    x: Tensor | None,
    base: Tensor,
    unit_exponent: Tensor,
    *,
    format: Format,
) -> Tensor:
    """See `gossamer.kernels.decode.decode`."""
    n = base.numel()
    status = torch.zeros(2, dtype=torch.int32, device=base.device)
    first = torch.arange(chunk_count(n), device=base.device)[:, None] * CHUNK_ELEMENTS
    for payload, share, times in zip(payloads, shares, multiplicity, strict=True):
        records = unpack(payload, n, format)
        exponent = unit_exponent[records.valid]
        count = share_counts(records.scale, records.level, exponent, shares=share)
        delta = count.to(torch.int64) * times
        flat = records.indices + first[records.valid]
        unit = power_of_two(exponent)[:, None].expand_as(flat)
        inside = flat < n
        flat, delta, unit = flat[inside], delta[inside], unit[inside]
        total = base[flat].to(torch.int64) + delta
        fits = total == total.to(torch.int32)
        flat, delta, unit, total = flat[fits], delta[fits], unit[fits], total[fits]
        base[flat] = total.to(torch.int32)
        if x is not None:
            x[flat] += delta.to(torch.float32) * unit
        status += torch.stack([(~records.valid).sum(), (~fits).sum()]).to(torch.int32)
    return status


def unpack(payload: Tensor, n: int, format: Format) -> Records:
    """Read the valid records of a payload; any bytes are safe."""
    chunks, k = chunk_count(n), format.k
    record_bytes = format.record_words * WORD_BYTES
    records, scales = payload[: chunks * record_bytes], payload[chunks * record_bytes :]
    octet = records.to(torch.int64).view(chunks, record_bytes)
    bit = ((octet[:, :, None] >> torch.arange(8, device=payload.device)) & 1).view(
        chunks, 32 * format.record_words
    )
    code_from = 32 * (format.low_words + format.high_words)
    low = _fields(bit[:, : 32 * format.low_words], format.low_bits)
    unary = bit[:, 32 * format.low_words : code_from]
    code = _fields(bit[:, code_from:], format.bits)
    scale_bits = scales[0::2].to(torch.int32) | (scales[1::2].to(torch.int32) << 8)

    complete = unary.sum(dim=1) == k
    # Incomplete records get some k bits, so that every row has a length; they are dropped below.
    fallback = (torch.arange(format.high_bits, device=payload.device) < k).to(unary.dtype)
    unary = torch.where(complete[:, None], unary, fallback)
    position = unary.nonzero()[:, 1].view(chunks, k)
    high = position - torch.arange(k, device=payload.device)
    index = (high << format.low_bits) | low
    ascending = (index.diff(dim=1) > 0).all(dim=1)
    valid = complete & ascending & (index[:, -1] < CHUNK_ELEMENTS) & (scale_bits <= MAX_SCALE_BITS)

    if format.bits == 8:
        level = (code ^ 0x80) - 0x80
    else:
        magnitude = torch.ones_like(code) if format.bits == 1 else 2 + (code >> 1)
        level = magnitude * (1 - 2 * (code & 1))
    scale = (scale_bits << 16).view(torch.float32)
    return Records(valid, index[valid], level[valid].to(torch.int32), scale[valid])


def _fields(bit: Tensor, width: int) -> Tensor:
    """Join each run of `width` bits, the lowest first: [chunks, m * width] -> [chunks, m]."""
    shift = torch.arange(width, device=bit.device)
    return (bit.reshape(bit.shape[0], bit.shape[1] // width, width) << shift).sum(dim=2)
