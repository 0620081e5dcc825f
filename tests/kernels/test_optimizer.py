import pytest
import torch
from kernel_cases import SIZES

from gossamer.kernels import adamw_, sgd_
from gossamer.kernels.optimizer import reference

STEPS = 12
# Relative norm of the error against torch.optim in float64, by dtype of the update; the float32
# updates of torch itself err by 3e-7 here.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 4e-7}

ADAMW = {
    "default": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2},
    "plain": {"lr": 1e-2, "betas": (0.5, 0.9), "eps": 1e-6, "weight_decay": 0.0},
    "memoryless": {"lr": 1e-2, "betas": (0.0, 0.0), "eps": 1e-3, "weight_decay": 0.3},
    "frozen": {"lr": 0.0, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1},
}
SGD = {
    "plain": {"lr": 0.1, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False},
    "decay": {"lr": 0.1, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.1, "nesterov": False},
    "heavy": {"lr": 0.1, "momentum": 0.9, "dampening": 0.4, "weight_decay": 0.1, "nesterov": False},
    "nesterov": {
        "lr": 0.1,
        "momentum": 0.9,
        "dampening": 0.0,
        "weight_decay": 0.01,
        "nesterov": True,
    },
}


def gradients(n, dtype):
    """The same numbers in every dtype; magnitudes over many orders, and zeros."""
    generator = torch.Generator().manual_seed(n)
    g = torch.randn(STEPS, n, generator=generator)
    g *= 10.0 ** torch.randint(-6, 3, (n,), generator=generator)
    g[:, ::7] = 0
    return torch.randn(n, generator=generator).to(dtype), g.to(dtype)


def torch_result(optimizer_class, options, n):
    start, all_gradients = gradients(n, torch.float64)
    p = torch.nn.Parameter(start)
    optimizer = optimizer_class([p], **options)
    for g in all_gradients:
        p.grad = g
        optimizer.step()
    return p.detach()


def assert_close(actual, expected, dtype):
    error = (actual.double() - expected).norm()
    assert error <= TOLERANCE[dtype] * expected.norm()


def adamw_result(update, options, n, dtype):
    p, all_gradients = gradients(n, dtype)
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for step, g in enumerate(all_gradients, start=1):
        update(p, g, m, v, step=step, **options)
    return p


def sgd_result(update, options, n, dtype):
    p, all_gradients = gradients(n, dtype)
    buf = torch.full_like(p, float("nan")) if options["momentum"] else None
    for step, g in enumerate(all_gradients, start=1):
        update(p, g, buf, step=step, **options)
    return p


@pytest.mark.parametrize("options", ADAMW.values(), ids=ADAMW)
def test_adamw_specification_is_that_of_torch(options):
    expected = torch_result(torch.optim.AdamW, options, 1000)
    assert_close(
        adamw_result(reference.adamw_, options, 1000, torch.float64), expected, torch.float64
    )


@pytest.mark.parametrize("options", SGD.values(), ids=SGD)
def test_sgd_specification_is_that_of_torch(options):
    expected = torch_result(torch.optim.SGD, options, 1000)
    assert_close(sgd_result(reference.sgd_, options, 1000, torch.float64), expected, torch.float64)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("options", ADAMW.values(), ids=ADAMW)
def test_adamw_matches_torch(run, options, n):
    def update(*buffers, **options):
        run("optimizer", "adamw_", *buffers, **options)

    result = adamw_result(update, options, n, torch.float32)
    assert_close(result, torch_result(torch.optim.AdamW, options, n), torch.float32)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("options", SGD.values(), ids=SGD)
def test_sgd_matches_torch(run, options, n):
    def update(*buffers, **options):
        run("optimizer", "sgd_", *buffers, **options)

    result = sgd_result(update, options, n, torch.float32)
    assert_close(result, torch_result(torch.optim.SGD, options, n), torch.float32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": -1.0}, "lr is -1.0"),
        ({"betas": (0.9, 1.0)}, r"betas are \(0.9, 1.0\)"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"step": 0}, "step is 0"),
    ],
)
def test_adamw_refuses_options_out_of_range(change, words):
    options = {**ADAMW["default"], "step": 1, **change}
    with pytest.raises(ValueError, match=words):
        adamw_(*torch.zeros(4, 10).unbind(), **options)


def test_adamw_refuses_other_dtypes_and_layouts():
    p = torch.zeros(10)
    with pytest.raises(TypeError, match=r"m is torch.bfloat16"):
        adamw_(p, p, p.bfloat16(), p, step=1, **ADAMW["default"])
    with pytest.raises(ValueError, match="v has stride"):
        adamw_(p, p, p, torch.zeros(20)[::2], step=1, **ADAMW["default"])


@pytest.mark.parametrize(
    ("buf", "change", "words"),
    [
        (None, {}, "buf is missing"),
        (torch.zeros(10), {"momentum": 0.0, "nesterov": False}, "buf is given"),
        (torch.zeros(10), {"dampening": 0.1}, "Nesterov"),
        (torch.zeros(10), {"weight_decay": -0.1}, "weight_decay is -0.1"),
    ],
)
def test_sgd_refuses_options_that_do_not_go_together(buf, change, words):
    options = {**SGD["nesterov"], "step": 1, **change}
    with pytest.raises(ValueError, match=words):
        sgd_(torch.zeros(10), torch.zeros(10), buf, **options)
