"""Optimizer updates on a GPU: `reference.py` in Triton, one pass over memory.

Every option is an argument at run time, so that a learning rate schedule compiles nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gossamer.kernels.encode.gpu import on_device

BLOCK_ELEMENTS = 1024
LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def _adamw_kernel(
    p_ptr,
    g_ptr,
    m_ptr,
    v_ptr,
    n,
    keep,
    gain1,
    beta2,
    gain2,
    correction2,
    eps,
    rate,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    mask = at < n
    p = tl.load(p_ptr + at, mask=mask, other=0.0)
    g = tl.load(g_ptr + at, mask=mask, other=0.0)
    m = tl.load(m_ptr + at, mask=mask, other=0.0)
    v = tl.load(v_ptr + at, mask=mask, other=0.0)
    m += gain1 * (g - m)
    v = beta2 * v + gain2 * (g * g)
    denominator = tl.sqrt_rn(v) * correction2 + eps
    p = keep * p - tl.div_rn(rate * m, denominator)
    tl.store(p_ptr + at, p, mask=mask)
    tl.store(m_ptr + at, m, mask=mask)
    tl.store(v_ptr + at, v, mask=mask)


def adamw_(p, g, m, v, *, step, lr, betas, eps, weight_decay):
    """See `gossamer.kernels.optimizer.adamw_`."""
    n = p.numel()
    if n == 0:
        return
    beta1, beta2 = betas
    with on_device(p):
        _adamw_kernel[(triton.cdiv(n, BLOCK_ELEMENTS),)](
            p.detach(),
            g.detach(),
            m,
            v,
            n,
            float(1 - lr * weight_decay),
            float(1 - beta1),
            float(beta2),
            float(1 - beta2),
            float((1 - beta2**step) ** -0.5),
            float(eps),
            float(lr / (1 - beta1**step)),
            BLOCK=BLOCK_ELEMENTS,
            **LAUNCH,
        )


@triton.jit
def _sgd_kernel(
    p_ptr,
    g_ptr,
    buf_ptr,
    n,
    lr,
    weight_decay,
    momentum,
    gain,
    HAS_MOMENTUM: tl.constexpr,
    FIRST: tl.constexpr,
    NESTEROV: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    mask = at < n
    p = tl.load(p_ptr + at, mask=mask, other=0.0)
    g = tl.load(g_ptr + at, mask=mask, other=0.0)
    g += weight_decay * p
    if HAS_MOMENTUM:
        if FIRST:
            buf = g
        else:
            buf = momentum * tl.load(buf_ptr + at, mask=mask, other=0.0) + gain * g
        tl.store(buf_ptr + at, buf, mask=mask)
        if NESTEROV:
            g += momentum * buf
        else:
            g = buf
    tl.store(p_ptr + at, p - lr * g, mask=mask)


def sgd_(p, g, buf, *, step, lr, momentum, dampening, weight_decay, nesterov):
    """See `gossamer.kernels.optimizer.sgd_`."""
    n = p.numel()
    if n == 0:
        return
    with on_device(p):
        _sgd_kernel[(triton.cdiv(n, BLOCK_ELEMENTS),)](
            p.detach(),
            g.detach(),
            p.detach() if buf is None else buf,
            n,
            float(lr),
            float(weight_decay),
            float(momentum),
            float(1 - dampening),
            HAS_MOMENTUM=buf is not None,
            FIRST=step == 1,
            NESTEROV=nesterov,
            BLOCK=BLOCK_ELEMENTS,
            **LAUNCH,
        )
