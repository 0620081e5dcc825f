"""Models with everything that real ones have: tied, frozen, transposed and buffered tensors."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Awkward(nn.Module):
    """Tied weights, a frozen parameter, a BatchNorm buffer and a non-contiguous parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(8, 16, bias=False)
        self.leave = nn.Linear(8, 16, bias=False)
        self.leave.weight = self.enter.weight
        self.norm = nn.BatchNorm1d(16)
        self.frozen = nn.Parameter(torch.randn(16), requires_grad=False)
        self.sliced = nn.Parameter(torch.randn(16, 8)[:, ::2])
        self.transposed = nn.Parameter(torch.randn(4, 3).t())

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norm(self.enter(x) + self.leave(x)) + self.frozen)
        return h @ self.sliced @ self.transposed.t()


def awkward(seed: int) -> tuple[Awkward, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Awkward()
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)


def plain(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(8, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 3)
    )
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A task that can be learned: which of three sums is the largest."""
    x = torch.randn(32, 8, generator=generator)
    return x, torch.stack([x[:, :3].sum(1), x[:, 3:6].sum(1), x[:, 5:].sum(1)], 1).argmax(1)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> Tensor:
    """Forward and backward of one batch; the optimizer's step is the caller's."""
    x, y = batch(generator)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    return loss
