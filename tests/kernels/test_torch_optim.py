import copy

import pytest
import torch
from torch import nn

from gossamer.kernels import FusedAdamW, FusedSGD

# Relative norm of the difference of two float32 trajectories that round differently.
TOLERANCE = 1e-6

PAIRS = [
    (FusedAdamW, torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    (FusedAdamW, torch.optim.AdamW, {"lr": 1e-2, "betas": (0.5, 0.9), "eps": 1e-6}),
    (FusedSGD, torch.optim.SGD, {"lr": 1e-2}),
    (FusedSGD, torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "dampening": 0.3}),
    (
        FusedSGD,
        torch.optim.SGD,
        {"lr": 1e-2, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ),
]
IDS = ["adamw", "adamw_short_memory", "sgd", "sgd_momentum", "sgd_nesterov"]
pairs = pytest.mark.parametrize(("ours", "theirs", "options"), PAIRS, ids=IDS)


def network():
    """Parameters with every layout: a vector, a matrix, channels last, a transposed matrix."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 5))
    net = net.to(memory_format=torch.channels_last)
    net[2].weight = nn.Parameter(torch.randn(288, 5).t() * 0.05)
    assert not net[0].weight.is_contiguous()
    assert not net[2].weight.is_contiguous()
    return net


def train(net, optimizer, steps, *, first=0, scheduler=None):
    for step in range(first, first + steps):
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def assert_same(net, other):
    mine = nn.utils.parameters_to_vector(p.contiguous() for p in net.parameters())
    yours = nn.utils.parameters_to_vector(p.contiguous() for p in other.parameters())
    assert (mine - yours).norm() <= TOLERANCE * yours.norm()


@pairs
def test_fused_optimizer_follows_torch(ours, theirs, options):
    net, other = network(), network()
    before = nn.utils.parameters_to_vector(p.contiguous() for p in net.parameters())
    train(net, ours(net.parameters(), **options), 10)
    train(other, theirs(other.parameters(), **options), 10)
    assert_same(net, other)
    after = nn.utils.parameters_to_vector(p.contiguous() for p in net.parameters())
    assert (after - before).norm() > 1e-3 * before.norm()


@pairs
def test_fused_optimizer_continues_from_the_state_of_torch_and_back(ours, theirs, options):
    net, other = network(), network()
    optimizer = theirs(net.parameters(), **options)
    train(net, optimizer, 3)
    state = copy.deepcopy(optimizer.state_dict())
    optimizer = ours(net.parameters(), lr=1.0)
    optimizer.load_state_dict(state)
    train(net, optimizer, 3, first=3)
    state = copy.deepcopy(optimizer.state_dict())
    optimizer = theirs(net.parameters(), lr=1.0)
    optimizer.load_state_dict(state)
    train(net, optimizer, 3, first=6)
    train(other, theirs(other.parameters(), **options), 9)
    assert_same(net, other)


@pairs
def test_fused_state_dict_has_the_layout_of_torch(ours, theirs, options):
    states = []
    for optimizer_class in (ours, theirs):
        net = network()
        optimizer = optimizer_class(net.parameters(), **options)
        train(net, optimizer, 2)
        states.append(optimizer.state_dict())
    mine, yours = states
    assert mine["state"].keys() == yours["state"].keys()
    for key, entry in mine["state"].items():
        assert {k: v.shape for k, v in entry.items() if v is not None} == {
            k: v.shape for k, v in yours["state"][key].items() if v is not None
        }
    assert mine["param_groups"][0].keys() >= yours["param_groups"][0].keys()


@pairs
def test_fused_optimizer_obeys_a_scheduler(ours, theirs, options):
    nets = network(), network()
    for net, optimizer_class in zip(nets, (ours, theirs), strict=True):
        optimizer = optimizer_class(net.parameters(), **options)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=12)
        train(net, optimizer, 10, scheduler=schedule)
    assert_same(*nets)


@pairs
def test_fused_optimizer_keeps_groups_apart_and_skips_what_has_no_gradient(ours, theirs, options):
    results = []
    for optimizer_class in (ours, theirs):
        a, b, c = (nn.Parameter(torch.ones(7)) for _ in range(3))
        groups = [{"params": [a, c]}, {"params": [b], "lr": 0.5, "weight_decay": 0.2}]
        optimizer = optimizer_class(groups, **options)
        for _ in range(3):
            a.grad, b.grad = torch.arange(7.0), torch.ones(7)
            optimizer.step()
        assert torch.equal(c, torch.ones(7))
        results.append(torch.cat([a, b]).detach())
    torch.testing.assert_close(*results, rtol=TOLERANCE, atol=TOLERANCE)


def test_fused_optimizer_returns_the_loss_of_its_closure():
    p = nn.Parameter(torch.ones(3))
    optimizer = FusedSGD([p], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == 3.0
    assert torch.equal(p.detach(), torch.zeros(3))


@pytest.mark.parametrize("optimizer_class", [FusedAdamW, FusedSGD])
def test_fused_optimizer_refuses_what_it_cannot_do(optimizer_class):
    with pytest.raises(TypeError, match=r"not torch\.bfloat16"):
        optimizer_class([nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))])
    with pytest.raises(ValueError, match="maximize=True is not supported"):
        optimizer_class([nn.Parameter(torch.zeros(3))], maximize=True)
    with pytest.raises(ValueError, match="lr is -1"):
        optimizer_class([nn.Parameter(torch.zeros(3))], lr=-1)
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.zeros(3).to_sparse()
    with pytest.raises(TypeError, match="needs dense gradients"):
        optimizer_class([p]).step()


def test_fused_adamw_refuses_the_state_of_amsgrad():
    p = nn.Parameter(torch.zeros(3))
    optimizer = FusedAdamW([p])
    with pytest.raises(ValueError, match="amsgrad=True is not supported"):
        optimizer.load_state_dict(torch.optim.AdamW([p], amsgrad=True).state_dict())
