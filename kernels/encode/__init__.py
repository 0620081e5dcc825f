"""Encode what a model has moved away from the shared base: exact chunk top-k, quantize, pack."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gossamer.kernels.format import Format
from gossamer.kernels.launch import backend, check_model, check_shares


class Encoded(NamedTuple):
    """An encoded update.

    payload: [payload_bytes] uint8, see `gossamer.kernels.format`
    skipped: [2] int32; elements left out because their difference is not finite, and because their
             count is at the end of its range. On the device of the model; reading it waits.
    """

    payload: Tensor
    skipped: Tensor


def encode(
    x: Tensor, base: Tensor, unit_exponent: Tensor, *, format: Format, shares: int
) -> Encoded:
    """Encode `x - base` and add what was encoded to `base`, in one pass over memory.

    Of every 4096 elements the `format.k` that differ most are sent, ties to the lower index. `base`
    grows by `shares` times the counts that `decode` adds at a receiver, so `x - base` becomes the
    error feedback and nothing is lost. Elements that cannot be encoded are left as they are and
    counted in `skipped`.

    x:             [n] float32, the model
    base:          [n] int32 counts, the shared base as this peer sees it; updated in place
    unit_exponent: [ceil(n / 4096)] int8; a count of chunk c is worth 2 ** unit_exponent[c]
    shares:        number of peers that share the update, 1 to 2**22; each applies 1 / shares of it
    returns:       payload and skipped counts, on the device of `x`, without waiting for it
    Raises TypeError for a wrong dtype, ValueError for a wrong shape, device, layout or number of
    shares.
    """
    check_model(x, base, unit_exponent)
    check_shares(shares)
    kernels = backend(__name__, base)
    return Encoded(*kernels.encode(x, base, unit_exponent, format=format, shares=shares))


__all__ = ["Encoded", "encode"]
