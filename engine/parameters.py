"""A model's trainable parameters as one flat buffer that they are views of.

Every algorithm then works on one tensor, whatever the model. Tied weights appear once; frozen
parameters and buffers stay where they are and travel only when a peer joins. A parameter keeps its
strides where its memory is dense (channels_last and transposed weights stay so); one that is not
becomes contiguous.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from xxhash import xxh3_64_hexdigest

from gossamer.engine.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class FlatParameters:
    """The flat view of a model.

    flat:        [n] float32, the trainable parameters one after another
    rest:        frozen parameters and buffers, by name
    signature:   equal for two models whose flat buffers mean the same
    description: the model's size, for people
    """

    flat: Tensor
    rest: dict[str, Tensor]
    signature: str
    description: str

    @classmethod
    def of(cls, model: nn.Module) -> "FlatParameters":
        """Move the trainable parameters of a model into one buffer.

        Raises ConfigurationError when there are none, or where they are not float32 on one device.
        """
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ConfigurationError("the model has no trainable parameters; nothing to exchange")
        device = named[0][1].device
        for name, p in named:
            if p.dtype != torch.float32:
                raise ConfigurationError(
                    f"parameter {name!r} is {p.dtype}; keep parameters in float32 and use "
                    "torch.autocast for lower precision"
                )
            if p.device != device:
                raise ConfigurationError(
                    f"parameter {name!r} is on {p.device}, {named[0][0]!r} on {device}; "
                    "move the model to one device"
                )
        flat = torch.empty(sum(p.numel() for _, p in named), dtype=torch.float32, device=device)
        layout, offset = [], 0
        for name, p in named:
            stride = p.stride() if _dense(p) else _contiguous_stride(p)
            view = torch.as_strided(flat, p.shape, stride, offset)
            view.copy_(p.data)
            gradient = p.grad
            p.data = view
            if gradient is not None:
                p.grad = torch.empty_like(view).copy_(gradient)
            layout.append((name, tuple(p.shape), stride))
            offset += p.numel()
        rest = {name: p.data for name, p in model.named_parameters() if not p.requires_grad}
        rest.update({name: b for name, b in model.named_buffers() if b is not None})
        other = [(name, tuple(t.shape), str(t.dtype)) for name, t in rest.items()]
        signature = xxh3_64_hexdigest(repr((layout, other)).encode())
        description = f"{flat.numel():,} trainable parameters in {len(named)} tensors"
        return cls(flat, rest, signature, description)


def _dense(p: Tensor) -> bool:
    """Whether the elements fill their memory without gaps or overlap, in some order of axes."""
    expected = 1
    for stride, size in sorted(zip(p.stride(), p.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def _contiguous_stride(p: Tensor) -> tuple[int, ...]:
    return torch.empty(p.shape, device="meta").stride()
