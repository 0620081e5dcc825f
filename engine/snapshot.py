"""The state that a peer hands to one that joins, as bytes.

safetensors (shared base, its units, frozen parameters, buffers; the vector clock as metadata),
compressed with zstd level 1 where a probe of the first 64 KiB says that it pays. No pickle; sizes
are checked before memory is taken.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import zstandard
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from xxhash import xxh3_64

from gossamer.engine.errors import TrainingError

PROBE_BYTES = 64 * 1024
WORTHWHILE = 0.95
_RAW, _ZSTD = b"\x00", b"\x01"
_BASE, _UNITS, _REST = "base", "unit_exponent", "rest."


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a new peer needs.

    base:          [n] int32, the shared base in units
    unit_exponent: [chunks] int8
    clock:         the updates that the base contains: origin -> highest number
    rest:          frozen parameters and buffers, by name
    digest:        of the base and its units, as the sender computed it
    """

    base: Tensor
    unit_exponent: Tensor
    clock: Mapping[int, int]
    rest: Mapping[str, Tensor]
    digest: str

    @property
    def identity(self) -> str:
        """Equal for two snapshots of which the tensors are equal."""
        state = xxh3_64(self.digest.encode())
        for name, tensor in sorted(self.rest.items()):
            state.update(name.encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            state.update(flat.view(torch.uint8).numpy().tobytes())
        return state.hexdigest()

    def pack(self, *, have: str = "") -> bytes:
        """The bytes to send to a peer that holds tensors with the identity `have`."""
        tensors: dict[str, Tensor] = {}
        if have != self.identity:
            tensors = {_BASE: self.base, _UNITS: self.unit_exponent}
            tensors.update({_REST + name: tensor for name, tensor in self.rest.items()})
        tensors = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}
        raw = save(tensors, {"clock": json.dumps(self.clock), "digest": self.digest})
        compressor = zstandard.ZstdCompressor(level=1)
        probe = raw[-PROBE_BYTES:]
        if len(compressor.compress(probe)) < WORTHWHILE * len(probe):
            return _ZSTD + compressor.compress(raw)
        return _RAW + raw

    @classmethod
    def unpack(cls, data: bytearray, *, like: "Snapshot") -> "Snapshot":
        """Read a snapshot of the same model as `like`, which fills in what was not sent.

        Raises TrainingError when the bytes are not one.
        """
        try:
            raw = _decompress(data, limit=2 * _size(like) + (1 << 20))
            tensors = load(raw)
            header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
            metadata = header["__metadata__"]
            clock = {int(k): int(v) for k, v in json.loads(metadata["clock"]).items()}
            digest = str(metadata["digest"])
        except (SafetensorError, zstandard.ZstdError, KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"the state that a peer sent is unreadable: {error}") from None
        if not tensors:
            return replace(like, clock=clock, digest=digest)
        rest = {k.removeprefix(_REST): t for k, t in tensors.items() if k.startswith(_REST)}
        new = cls(tensors[_BASE], tensors[_UNITS], clock, rest, digest)
        if new._layout() != like._layout():
            raise TrainingError("the state that a peer sent belongs to another model")
        return new

    def _layout(self) -> dict[str, tuple[object, ...]]:
        tensors = {_BASE: self.base, _UNITS: self.unit_exponent, **self.rest}
        return {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}


def _size(snapshot: Snapshot) -> int:
    tensors = [snapshot.base, snapshot.unit_exponent, *snapshot.rest.values()]
    return sum(t.numel() * t.element_size() for t in tensors)


def _decompress(data: bytearray, *, limit: int) -> bytes:
    body = memoryview(data)[1:]
    if data[:1] == _RAW:
        return bytes(body)
    if data[:1] != _ZSTD:
        raise ValueError(f"begins with {bytes(data[:1])!r}")
    size = zstandard.get_frame_parameters(bytes(body[:18])).content_size
    if not 0 < size <= limit:
        raise ValueError(f"claims {size} bytes, at most {limit} can be right")
    return zstandard.ZstdDecompressor().decompress(body, max_output_size=size)


def copy_rest(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """Overwrite frozen parameters and buffers in place."""
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])
