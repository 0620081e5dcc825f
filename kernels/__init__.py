"""Compression, decompression and optimizer kernels: tensors in, tensors out.

`encode` cuts what a model has learned to a payload of a few thousandths of its size, `decode` adds
payloads to a shared base in fixed point, and the optimizers update flat buffers in one pass. CPU
tensors run native code, GPU tensors run Triton; both give the same payload bytes.
"""

from __future__ import annotations

from gossamer.kernels.decode import Decoded, check, decode
from gossamer.kernels.encode import Encoded, encode
from gossamer.kernels.fixed_point import choose_unit_exponents, to_counts, to_float
from gossamer.kernels.format import CHUNK_ELEMENTS, FORMATS, Format, chunk_count
from gossamer.kernels.optimizer import adamw_, sgd_
from gossamer.kernels.optimizer.torch_optim import FusedAdamW, FusedSGD

__all__ = [
    "CHUNK_ELEMENTS",
    "FORMATS",
    "Decoded",
    "Encoded",
    "Format",
    "FusedAdamW",
    "FusedSGD",
    "adamw_",
    "check",
    "choose_unit_exponents",
    "chunk_count",
    "decode",
    "encode",
    "sgd_",
    "to_counts",
    "to_float",
]
