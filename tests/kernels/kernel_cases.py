"""Models, shared bases and units for the kernel tests and benchmarks, by name."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gossamer.kernels import FORMATS, Format, choose_unit_exponents, chunk_count, to_counts
from gossamer.kernels.fixed_point import ENCODE_LIMIT

ALL_FORMATS = [Format(k, bits) for k, bits in FORMATS]
SIZES = [0, 1, 63, 4095, 4096, 4097, 9973]
SHARES = [1, 2, 3, 5, 64]


class Case(NamedTuple):
    """x [n] float32, base [n] int32 and unit_exponent [chunks] int8."""

    x: Tensor
    base: Tensor
    unit_exponent: Tensor


def format_name(format: Format) -> str:
    return f"k{format.k}b{format.bits}"


def make(kind: str, n: int, seed: int = 0) -> Case:
    """Build the case `kind` with n elements."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(n, generator=generator)

    def integers(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (n,), generator=generator)

    x = normal() * normal().exp()
    if kind == "huge":
        x = (x * 1e37).clamp(-3e38, 3e38)
    unit_exponent = choose_unit_exponents(x)
    base = to_counts(x, unit_exponent)
    if kind == "trained":
        x += 0.01 * normal()
    elif kind == "huge":
        x = x * (1 + 0.01 * normal())
    elif kind == "equal":
        x = base.float() * 2.0 ** unit_exponent.repeat_interleave(4096)[:n].float()
    elif kind == "ties":
        x, base = integers(-2, 3) * 0.5, torch.zeros_like(base)
    elif kind == "zeros":
        x, base = torch.zeros(n), torch.zeros_like(base)
    elif kind == "subnormal":
        x, base = normal() * 1e-39, torch.zeros_like(base)
    elif kind == "faint":
        # Around the exponent below which a chunk is sent as zeros.
        x = normal() * 2.0 ** (-88 + integers(-3, 3)).float()
        base = torch.zeros_like(base)
    elif kind == "wide":
        x, base = normal() * 2.0 ** integers(-120, 100).float(), torch.zeros_like(base)
    elif kind == "not_finite":
        x += normal()
        special = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0])
        x = torch.where(integers(0, 3) == 0, special[integers(0, 4)], x)
    elif kind == "lost":
        x = torch.full((n,), float("nan"))
    elif kind == "limit":
        edge = torch.tensor([ENCODE_LIMIT, ENCODE_LIMIT + 1, ENCODE_LIMIT - 1, 2**31 - 1, 0])
        base = edge[integers(0, 5)].to(torch.int32) * (2 * integers(0, 2) - 1).to(torch.int32)
        x += normal()
    elif kind == "brink":
        # Nothing can be encoded, so zeros are selected and every addition would leave int32.
        base = torch.full((n,), 2**31 - 1, dtype=torch.int32)
        base[: n // 3] = 0
    elif kind == "bits":
        x = integers(-(2**31), 2**31).to(torch.int32).view(torch.float32)
        base = integers(-(2**31), 2**31).to(torch.int32)
        unit_exponent = torch.randint(-128, 128, (chunk_count(n),), generator=generator)
        unit_exponent = unit_exponent.to(torch.int8)
    else:
        raise ValueError(f"no case {kind!r}")
    return Case(x, base, unit_exponent)


KINDS = [
    "trained",
    "equal",
    "ties",
    "zeros",
    "subnormal",
    "faint",
    "wide",
    "huge",
    "not_finite",
    "lost",
    "limit",
    "brink",
    "bits",
]
