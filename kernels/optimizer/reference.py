"""The specification of the optimizer updates, in plain torch operations.

    AdamW: p *= 1 - lr wd;  m += (1 - b1) (g - m);  v = b2 v + (1 - b2) g^2
           p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
    SGD:   g += wd p;  buf = g at step 1, then momentum buf + (1 - dampening) g
           p -= lr (g + momentum buf if nesterov else buf)

Works in the dtype of its arguments; in float64 it is the truth that the other backends are measured
against.
"""

from __future__ import annotations

from torch import Tensor


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
    """See `gossamer.kernels.optimizer.adamw_`."""
    beta1, beta2 = betas
    p.mul_(1 - lr * weight_decay)
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    denominator = (v.sqrt() / (1 - beta2**step) ** 0.5).add_(eps)
    p.addcdiv_(m, denominator, value=-lr / (1 - beta1**step))


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
    """See `gossamer.kernels.optimizer.sgd_`."""
    g = g.add(p, alpha=weight_decay)
    if buf is not None:
        if step == 1:
            buf.copy_(g)
        else:
            buf.mul_(momentum).add_(g, alpha=1 - dampening)
        g = g.add(buf, alpha=momentum) if nesterov else buf
    p.add_(g, alpha=-lr)
