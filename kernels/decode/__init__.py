"""Decode payloads and add them to the shared base and the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gossamer.kernels.format import Format
from gossamer.kernels.launch import backend, check_flat, check_model, check_shares

MAX_MULTIPLICITY = 2**16


class Decoded(NamedTuple):
    """What could not be applied.

    status: [2] int32; chunk records that are corrupt, and additions that would have left int32.
            Neither changed anything. On the device of the model; reading it waits.
    """

    status: Tensor


def decode(
    payloads: Tensor | Sequence[Tensor],
    shares: Sequence[int],
    multiplicity: Sequence[int],
    x: Tensor | None,
    base: Tensor,
    unit_exponent: Tensor,
    *,
    format: Format,
) -> Decoded:
    """Add `multiplicity` shares of each payload to `base` and `x`, in the given order.

    The counts added to `base` are integers, so `base` does not depend on the order; `x` gains
    float32(count) * 2**e per payload and has the same bits for the same order. Nothing outside the
    arguments is read or written whatever a payload holds; call `check` first to refuse a payload as
    a whole.

    payloads:      R of [payload_bytes] uint8, listed or stacked as [R, payload_bytes]
    shares:        [R] the number that each was encoded with
    multiplicity:  [R] shares to add, from 1 to 2**16 or from -1 to -2**16: 1 applies what another
                   peer sent, -j takes j shares of an own update away
    x:             [n] float32, the model; updated in place; None leaves it out
    base:          [n] int32 counts; updated in place
    unit_exponent: [ceil(n / 4096)] int8; a count of chunk c is worth 2 ** unit_exponent[c]
    returns:       what was left out, on the device of `base`, without waiting for it
    Raises TypeError for a wrong dtype, ValueError for anything else that does not fit.
    """
    check_model(x, base, unit_exponent)
    rows = list(payloads.unbind(0)) if isinstance(payloads, Tensor) else list(payloads)
    if not len(rows) == len(shares) == len(multiplicity):
        raise ValueError(
            f"{len(rows)} payloads, {len(shares)} shares and {len(multiplicity)} multiplicities; "
            "pass one of each per payload"
        )
    for row, share, times in zip(rows, shares, multiplicity, strict=True):
        check_flat("payload", row, torch.uint8, format.payload_bytes(base.numel()), base)
        check_shares(share)
        if times == 0 or abs(times) > MAX_MULTIPLICITY:
            raise ValueError(f"multiplicity is {times}; it must be 1 to 2**16 or -1 to -2**16")
    kernels = backend(__name__, base)
    return Decoded(
        kernels.decode(rows, shares, multiplicity, x, base, unit_exponent, format=format)
    )


def check(payload: Tensor, n: int, format: Format) -> None:
    """Raise ValueError unless every chunk record of the payload is valid.

    payload: [payload_bytes] uint8, on a CPU
    n:       elements of the model
    A record is valid when its high words have exactly k bits set, its indices ascend strictly and
    stay below 4096, and its scale is finite and has no sign.
    """
    if payload.device.type != "cpu":
        raise ValueError(
            f"payload is on {payload.device}; check it on the CPU, before it is copied"
        )
    if payload.dtype != torch.uint8:
        raise ValueError(f"payload is {payload.dtype}; pass its bytes as torch.uint8")
    expected = format.payload_bytes(n)
    if payload.dim() != 1 or payload.numel() != expected:
        raise ValueError(
            f"payload has shape {list(payload.shape)}; {n} elements take [{expected}] bytes"
        )
    chunk = backend(__name__, payload).first_corrupt(payload, n, format)
    if chunk >= 0:
        raise ValueError(f"payload is corrupt in chunk {chunk}; discard it and ask for it again")


__all__ = ["MAX_MULTIPLICITY", "Decoded", "check", "decode"]
