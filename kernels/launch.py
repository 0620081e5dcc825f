"""What every kernel checks before it runs, and where it runs.

CPU tensors go to the native kernels (numba), CUDA and ROCm tensors to the Triton kernels. Both are
imported at the first call, so that importing the package needs neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from gossamer.kernels.fixed_point import MAX_SHARES
from gossamer.kernels.format import chunk_count

# Rows of stacked payloads start at multiples of the widest load.
ROW_ALIGNMENT_BYTES = 16


def check_flat(name: str, tensor: Tensor, dtype: torch.dtype, elements: int, like: Tensor) -> None:
    """Raise TypeError or ValueError unless `tensor` is a contiguous vector that fits `like`."""
    if tensor.dtype != dtype:
        raise TypeError(f"{name} is {tensor.dtype}; convert it to {dtype}")
    if tensor.dim() != 1 or tensor.numel() != elements:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be [{elements}]")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} has stride {tensor.stride()}; pass a contiguous vector")
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}; move it to {like.device}")


def check_model(x: Tensor | None, base: Tensor, unit_exponent: Tensor) -> None:
    """Raise TypeError or ValueError unless model, shared base and units belong together."""
    n = base.numel()
    check_flat("base", base, torch.int32, n, base)
    if x is not None:
        check_flat("x", x, torch.float32, n, base)
    check_flat("unit_exponent", unit_exponent, torch.int8, chunk_count(n), base)


def check_shares(shares: int) -> None:
    """Raise ValueError unless an update can be divided into this many shares."""
    if not 1 <= shares <= MAX_SHARES:
        raise ValueError(f"shares is {shares}; it must be from 1 to {MAX_SHARES}")


def backend(package: str, tensor: Tensor) -> Any:
    """Import the module of `package` that has the kernels for the tensor's device.

    Raises ValueError for a device that has none.
    """
    if tensor.device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"no kernels for tensors on {tensor.device}; move them to a CPU or a CUDA or ROCm GPU"
        )
    return import_module(f"{package}.{'cpu' if tensor.device.type == 'cpu' else 'gpu'}")


def stack_rows(payloads: Sequence[Tensor]) -> Tensor:
    """Join payloads to [R, stride] uint8 whose rows start at multiples of 16 bytes.

    One aligned payload is viewed, not copied. What is behind a payload in its row is not set.
    """
    first = payloads[0]
    if len(payloads) == 1 and first.data_ptr() % ROW_ALIGNMENT_BYTES == 0:
        return first[None]
    stride = -(-first.numel() // ROW_ALIGNMENT_BYTES) * ROW_ALIGNMENT_BYTES
    stacked = first.new_empty(len(payloads), stride)
    for row, payload in zip(stacked, payloads, strict=True):
        row[: payload.numel()].copy_(payload)
    return stacked
