"""The shared base in fixed point: int32 counts of a power-of-two unit per chunk of 4096 elements.

    value_i = counts_i * 2 ** unit_exponent[i // 4096]

Integer addition is associative, so a base summed from the same updates has the same bits whatever
their order. Units are chosen once: the largest magnitude of a chunk takes about 2**22 counts, which
leaves a factor of 2**8 below the limit where updates of an element stop being encoded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.kernels.format import CHUNK_ELEMENTS, chunk_count

# Counts that the largest magnitude of a chunk takes, as a power of two.
COUNT_BITS = 22
# Chunks smaller than this still get the unit of a chunk of this magnitude, so that they have room
# to grow.
SMALLEST_MAGNITUDE = 2.0**-2
MAX_UNIT_EXPONENT = 100
MAX_COUNT = 2**30
# An element whose count is beyond this is left out of an encoding: 64 full steps below MAX_COUNT.
ENCODE_LIMIT = 2**30 - 2**26
# Largest change of a count by one update, over all its shares together.
MAX_STEP = 2**22
MAX_SHARES = 2**22


def choose_unit_exponents(x: Tensor) -> Tensor:
    """Choose the unit of each chunk from its largest magnitude.

    x:       [n] float32, finite
    returns: [ceil(n / 4096)] int8; ceil(log2(max(|x|, 2**-2))) - 22, within -100 and 100
    Raises ValueError when `x` holds a NaN or an infinity.
    """
    n = x.numel()
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        first = int((~finite).to(torch.uint8).argmax())
        raise ValueError(f"x[{first}] is {float(x[first])}; a shared base needs finite values")
    chunks = chunk_count(n)
    magnitude = F.pad(x.abs(), (0, chunks * CHUNK_ELEMENTS - n)).view(chunks, CHUNK_ELEMENTS)
    if chunks == 0:
        return torch.empty(0, dtype=torch.int8, device=x.device)
    mantissa, exponent = torch.frexp(magnitude.amax(dim=1).clamp(min=SMALLEST_MAGNITUDE))
    # frexp gives [0.5, 1): an exact power of two has mantissa 0.5 and needs one exponent less.
    exponent = exponent - (mantissa == 0.5).to(exponent.dtype) - COUNT_BITS
    return exponent.clamp(-MAX_UNIT_EXPONENT, MAX_UNIT_EXPONENT).to(torch.int8)


def power_of_two(exponent: Tensor) -> Tensor:
    """Give 2 ** exponent exactly, as float32; exponents beyond -100 and 100 count as these."""
    clamped = exponent.to(torch.int32).clamp(-MAX_UNIT_EXPONENT, MAX_UNIT_EXPONENT)
    return ((clamped + 127) << 23).view(torch.float32)


def to_counts(x: Tensor, unit_exponent: Tensor) -> Tensor:
    """Express `x` in counts of its unit, rounded half to even.

    x:             [n] float32
    unit_exponent: [ceil(n / 4096)] int8
    returns:       [n] int32
    Raises OverflowError, naming the first element, when a count is beyond 2**30 or is not a number.
    """
    counts = torch.round(x * _per_element(power_of_two(-unit_exponent.to(torch.int32)), x.numel()))
    fits = counts.abs() <= MAX_COUNT
    if not bool(fits.all()):
        first = int((~fits).to(torch.uint8).argmax())
        exponent = int(unit_exponent[first // CHUNK_ELEMENTS])
        raise OverflowError(
            f"x[{first}] = {float(x[first])} does not fit in 2**30 counts of 2**{exponent}; "
            "choose the unit exponents from these values"
        )
    return counts.to(torch.int32)


def to_float(counts: Tensor, unit_exponent: Tensor) -> Tensor:
    """Give the float32 nearest to each count times its unit.

    counts:        [n] int32
    unit_exponent: [ceil(n / 4096)] int8
    returns:       [n] float32
    """
    unit = _per_element(power_of_two(unit_exponent), counts.numel())
    return counts.to(torch.float32) * unit


def share_counts(scale: Tensor, level: Tensor, unit_exponent: Tensor, *, shares: int) -> Tensor:
    """Round one share of each quantized value to counts; sender and receivers all use this rule.

    scale:         [chunks] float32, finite, not negative
    level:         [chunks, k] int32; the value is scale * level
    unit_exponent: [chunks] int8
    returns:       [chunks, k] int32; at most 2**22 // shares in magnitude
    """
    weight = torch.tensor(1.0 / shares, dtype=torch.float32, device=scale.device)
    bound = float(MAX_STEP // shares)
    share = scale[:, None] * level.to(torch.float32) * weight
    counts = share * power_of_two(-unit_exponent.to(torch.int32))[:, None]
    return torch.round(counts.clamp(-bound, bound)).to(torch.int32)


def _per_element(per_chunk: Tensor, n: int) -> Tensor:
    return per_chunk.repeat_interleave(CHUNK_ELEMENTS)[:n]
