"""Optimizer updates on one CPU thread: `reference.py` as native code, one pass over memory."""

from __future__ import annotations

import numpy as np
from numba import njit


def adamw_(p, g, m, v, *, step, lr, betas, eps, weight_decay):
    """See `gossamer.kernels.optimizer.adamw_`."""
    beta1, beta2 = betas
    _adamw(
        p.detach().numpy(),
        g.detach().numpy(),
        m.numpy(),
        v.numpy(),
        np.float32(1 - lr * weight_decay),
        np.float32(1 - beta1),
        np.float32(beta2),
        np.float32(1 - beta2),
        np.float32((1 - beta2**step) ** -0.5),
        np.float32(eps),
        np.float32(lr / (1 - beta1**step)),
    )


@njit(cache=True, nogil=True, error_model="numpy")
def _adamw(p, g, m, v, keep, gain1, beta2, gain2, correction2, eps, rate):
    for i in range(p.size):
        gradient = g[i]
        first = m[i] + gain1 * (gradient - m[i])
        second = beta2 * v[i] + gain2 * (gradient * gradient)
        m[i] = first
        v[i] = second
        p[i] = keep * p[i] - rate * first / (np.sqrt(second) * correction2 + eps)


def sgd_(p, g, buf, *, step, lr, momentum, dampening, weight_decay, nesterov):
    """See `gossamer.kernels.optimizer.sgd_`."""
    weights = np.float32(lr), np.float32(weight_decay)
    if buf is None:
        _sgd(p.detach().numpy(), g.detach().numpy(), *weights)
        return
    _sgd_momentum(
        p.detach().numpy(),
        g.detach().numpy(),
        buf.numpy(),
        *weights,
        np.float32(momentum),
        np.float32(1 - dampening),
        step == 1,
        nesterov,
    )


@njit(cache=True, nogil=True)
def _sgd(p, g, lr, weight_decay):
    for i in range(p.size):
        p[i] -= lr * (g[i] + weight_decay * p[i])


@njit(cache=True, nogil=True)
def _sgd_momentum(p, g, buf, lr, weight_decay, momentum, gain, first, nesterov):
    for i in range(p.size):
        gradient = g[i] + weight_decay * p[i]
        kept = gradient if first else momentum * buf[i] + gain * gradient
        buf[i] = kept
        p[i] -= lr * (gradient + momentum * kept if nesterov else kept)
