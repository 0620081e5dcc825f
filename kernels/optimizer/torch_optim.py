"""The one-pass updates as drop-in torch optimizers.

Parameter groups, learning rate schedulers and the layout of the state are those of
`torch.optim.AdamW` and `torch.optim.SGD`, and each loads the other's `state_dict`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from gossamer.kernels.optimizer import adamw_, check_adamw, check_sgd, sgd_

# Options that torch keeps in its groups; they stay in ours, so that a state moves both ways.
_UNSUPPORTED = ("amsgrad", "maximize", "differentiable", "capturable")


class _FusedOptimizer(Optimizer):
    """What both share: closures, checks, and the walk over parameters with a gradient."""

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        for group in self.param_groups:
            self._check_group(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._check_group(self.param_groups[-1])
        for parameter in self.param_groups[-1]["params"]:
            if parameter.dtype != torch.float32:
                raise TypeError(
                    f"{type(self).__name__} updates torch.float32, not {parameter.dtype}; "
                    "keep the parameters in float32 and cast in the forward pass"
                )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            self._check_group(group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; give the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._check_group(group)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.is_sparse:
                    raise TypeError(
                        f"{type(self).__name__} needs dense gradients; pass sparse=False"
                    )
                self._update(parameter, parameter.grad, group)
        return loss

    def _check_group(self, group: dict[str, Any]) -> None:
        for option in _UNSUPPORTED:
            if group.get(option):
                raise ValueError(
                    f"{option}={group[option]} is not supported by {type(self).__name__}; "
                    "leave it out, or use torch.optim"
                )

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        raise NotImplementedError


class FusedAdamW(_FusedOptimizer):
    """`torch.optim.AdamW` in one pass over memory per parameter, on CPUs and GPUs.

    Raises TypeError for parameters that are not float32, ValueError for options out of range, and
    for amsgrad, maximize, capturable and differentiable, which it does not have.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": None,
            "capturable": False,
            "differentiable": False,
            "fused": None,
            "decoupled_weight_decay": True,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        if not group.get("decoupled_weight_decay", True):
            raise ValueError(
                "decoupled_weight_decay=False is Adam, not AdamW; use torch.optim.Adam"
            )
        check_adamw(
            lr=float(group["lr"]),
            betas=tuple(group["betas"]),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] = _advance(state["step"])
        with _flat(parameter, gradient, state["exp_avg"], state["exp_avg_sq"]) as buffers:
            adamw_(
                *buffers,
                step=int(state["step"]),
                lr=float(group["lr"]),
                betas=tuple(group["betas"]),
                eps=group["eps"],
                weight_decay=group["weight_decay"],
            )


class FusedSGD(_FusedOptimizer):
    """`torch.optim.SGD` in one pass over memory per parameter, on CPUs and GPUs.

    Raises TypeError for parameters that are not float32, ValueError for options out of range, and
    for maximize and differentiable, which it does not have.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": None,
            "differentiable": False,
            "fused": None,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        check_sgd(
            lr=float(group["lr"]),
            momentum=group["momentum"],
            dampening=group["dampening"],
            weight_decay=group["weight_decay"],
            nesterov=group["nesterov"],
        )

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        buffer = None
        first = False
        if group["momentum"] != 0:
            state = self.state[parameter]
            first = state.get("momentum_buffer") is None
            if first:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffer = state["momentum_buffer"]
        moments = [] if buffer is None else [buffer]
        with _flat(parameter, gradient, *moments) as buffers:
            sgd_(
                buffers[0],
                buffers[1],
                buffers[2] if moments else None,
                step=1 if first else 2,
                lr=float(group["lr"]),
                momentum=group["momentum"],
                dampening=group["dampening"],
                weight_decay=group["weight_decay"],
                nesterov=group["nesterov"],
            )


def _advance(step: Tensor | float) -> Tensor:
    """Count one more step, on the CPU, where reading it waits for nothing."""
    return torch.tensor(float(step) + 1)


@contextmanager
def _flat(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """Give each tensor as a contiguous vector; those that had to be copied are written back."""
    vectors = [tensor.detach().contiguous().view(-1) for tensor in tensors]
    yield vectors
    for tensor, vector in zip(tensors, vectors, strict=True):
        if not tensor.is_contiguous():
            tensor.detach().copy_(vector.view(tensor.shape))
