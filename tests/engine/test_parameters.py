"""The flat buffer: what is in it, what stays where it was, what makes two models differ."""

import pytest
import torch
from models import Awkward, awkward, step
from torch import nn

from gossamer.engine import ConfigurationError
from gossamer.engine.parameters import FlatParameters


def test_flat_holds_each_trainable_parameter_once() -> None:
    model = Awkward()
    expected = sum(p.numel() for p in model.parameters() if p.requires_grad)
    parameters = FlatParameters.of(model)
    assert parameters.flat.shape == (expected,)
    assert set(parameters.rest) == {
        "frozen",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    }


def test_flat_does_not_change_the_model() -> None:
    model = Awkward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    strides = model.transposed.stride()
    FlatParameters.of(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert model.transposed.stride() == strides, "a dense parameter keeps its layout"
    assert model.sliced.is_contiguous(), "one with gaps becomes contiguous"
    assert model.enter.weight is model.leave.weight


def test_flat_and_parameters_share_memory() -> None:
    model = Awkward()
    flat = FlatParameters.of(model).flat
    flat.fill_(3.0)
    assert all(bool((p == 3).all()) for p in model.parameters() if p.requires_grad)
    assert not bool((model.frozen == 3).all())


def test_flat_keeps_gradients_and_the_optimizer_works_on() -> None:
    model, optimizer = awkward(0)
    step(model, optimizer, torch.Generator().manual_seed(0))
    gradient = model.enter.weight.grad.clone()
    parameters = FlatParameters.of(model)
    assert torch.equal(model.enter.weight.grad, gradient)
    before = parameters.flat.clone()
    optimizer.step()
    assert not torch.equal(parameters.flat, before)


def test_signature_is_that_of_the_layout() -> None:
    def signature(*shapes: int) -> str:
        return FlatParameters.of(nn.Sequential(*(nn.Linear(s, s) for s in shapes))).signature

    assert signature(3, 4) == signature(3, 4)
    assert signature(3, 4) != signature(4, 3)
    frozen = nn.Linear(3, 3)
    frozen.bias.requires_grad_(False)
    assert FlatParameters.of(frozen).signature != FlatParameters.of(nn.Linear(3, 3)).signature


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (nn.ReLU(), "no trainable parameters"),
        (nn.Linear(2, 2).double(), r"'weight' is torch.float64; keep parameters in float32"),
        (nn.Linear(2, 2, device="meta").requires_grad_(False), "no trainable parameters"),
    ],
)
def test_flat_refuses_what_it_cannot_hold(model: nn.Module, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        FlatParameters.of(model)
