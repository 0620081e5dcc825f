"""Optimizer updates of flat float32 buffers, each in one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.launch import backend, check_flat


def adamw_(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Update `p`, `m` and `v` in place by one step of AdamW, as `torch.optim.AdamW` does.

    p, g, m, v: [n] float32; parameter, gradient, first and second moment
    step:       number of this step, from 1
    Raises TypeError for a wrong dtype, ValueError for anything else that does not fit.
    Source: Loshchilov and Hutter 2019, algorithm 2.
    """
    for name, tensor in (("p", p), ("g", g), ("m", m), ("v", v)):
        check_flat(name, tensor, torch.float32, p.numel(), p)
    check_adamw(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    if step < 1:
        raise ValueError(f"step is {step}; the first step is 1")
    backend(__name__, p).adamw_(
        p, g, m, v, step=step, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay
    )


def sgd_(
    p: Tensor,
    g: Tensor,
    buf: Tensor | None,
    *,
    step: int,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """Update `p` and `buf` in place by one step of SGD, as `torch.optim.SGD` does.

    p, g: [n] float32; parameter, gradient
    buf:  [n] float32, the momentum; its content is not read at step 1; None without momentum
    step: number of this step, from 1
    Raises TypeError for a wrong dtype, ValueError for anything else that does not fit.
    """
    for name, tensor in (("p", p), ("g", g), ("buf", buf)):
        if tensor is not None:
            check_flat(name, tensor, torch.float32, p.numel(), p)
    check_sgd(
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        weight_decay=weight_decay,
        nesterov=nesterov,
    )
    if (buf is None) != (momentum == 0):
        raise ValueError(
            f"momentum is {momentum} and buf is {'missing' if buf is None else 'given'}; "
            "pass a buffer exactly when there is momentum"
        )
    if step < 1:
        raise ValueError(f"step is {step}; the first step is 1")
    backend(__name__, p).sgd_(
        p,
        g,
        buf,
        step=step,
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        weight_decay=weight_decay,
        nesterov=nesterov,
    )


def check_adamw(*, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    """Raise ValueError unless the options of AdamW are in their ranges."""
    _check_not_negative(lr=lr, eps=eps, weight_decay=weight_decay)
    for beta in betas:
        if not 0 <= beta < 1:
            raise ValueError(f"betas are {betas}; both must be at least 0 and below 1")


def check_sgd(
    *, lr: float, momentum: float, dampening: float, weight_decay: float, nesterov: bool
) -> None:
    """Raise ValueError unless the options of SGD are in their ranges and go together."""
    _check_not_negative(lr=lr, momentum=momentum, weight_decay=weight_decay)
    if nesterov and (momentum == 0 or dampening != 0):
        raise ValueError(
            f"momentum is {momentum} and dampening {dampening}; "
            "Nesterov momentum needs momentum and no dampening"
        )


def _check_not_negative(**options: float) -> None:
    for name, value in options.items():
        if not value >= 0:
            raise ValueError(f"{name} is {value}; it must not be negative")


__all__ = ["adamw_", "check_adamw", "check_sgd", "sgd_"]
