"""Run a kernel by name, here or in a process of its own, and carry its arguments there and back."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

_empty = torch.empty


def poisoned_empty(*args: Any, **options: Any) -> Tensor:
    """Allocate like torch.empty, and fill with what no kernel writes by chance."""
    tensor = _empty(*args, **options)
    tensor.view(-1).view(torch.uint8).fill_(0xA5)
    return tensor


def kernel(package: str, backend: str, name: str) -> Callable[..., Any]:
    return getattr(import_module(f"gossamer.kernels.{package}.{backend}"), name)


def interprets() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


def call(package: str, backend: str, name: str, args: tuple, options: dict) -> tuple[Any, Any]:
    """Run in this process; give the result and the arguments as the kernel left them."""
    torch.empty = poisoned_empty
    tensors = to_tensors(args)
    result = kernel(package, backend, name)(*tensors, **options)
    return to_arrays(result), to_arrays(tensors)


def _map(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_map(change, item) for item in value)
    return change(value)


def to_arrays(value: Any) -> Any:
    return _map(lambda v: v.detach().numpy() if isinstance(v, Tensor) else v, value)


def to_tensors(value: Any) -> Any:
    return _map(lambda v: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v, value)


def to_device(value: Any, device: str) -> Any:
    return _map(lambda v: v.detach().to(device) if isinstance(v, Tensor) else v, value)


def copy_back(args: Any, after: Any) -> None:
    """Give the tensors among args the values that they have in after."""
    if isinstance(args, (list, tuple)):
        for mine, theirs in zip(args, after, strict=True):
            copy_back(mine, theirs)
    elif isinstance(args, Tensor) and args is not after:
        args.detach().copy_(torch.as_tensor(after))
