"""Every backend as a fixture; the GPU kernels run in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import kernel_worker
import pytest
import torch

BACKENDS = ["cpu", "interpreter"] + (["gpu"] if torch.cuda.is_available() else [])


@pytest.fixture(scope="session")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """A process whose Triton interprets; the flag must stand before Triton is first imported."""
    context = multiprocessing.get_context("spawn")
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(kernel_worker.interprets).result()
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before
        yield pool


@pytest.fixture(params=BACKENDS)
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Call a kernel of one backend: run("encode", "encode", x, ..., format=...).

    Tensors among the arguments are updated in place, whichever process or device ran the kernel.
    """
    if request.param == "interpreter":
        pool = request.getfixturevalue("interpreter")

        def call(package: str, name: str, *args: Any, **options: Any) -> Any:
            sent = kernel_worker.to_arrays(args)
            future = pool.submit(kernel_worker.call, package, "gpu", name, sent, options)
            result, after = future.result()
            kernel_worker.copy_back(args, after)
            return kernel_worker.to_tensors(result)

        call.backend = "interpreter"  # type: ignore[attr-defined]
        return call

    monkeypatch.setattr(torch, "empty", kernel_worker.poisoned_empty)

    def call_here(package: str, name: str, *args: Any, **options: Any) -> Any:
        moved = kernel_worker.to_device(args, "cuda") if request.param == "gpu" else args
        kernel = kernel_worker.kernel(package, request.param, name)
        result = kernel(*moved, **options)
        kernel_worker.copy_back(args, moved)
        return kernel_worker.to_device(result, "cpu")

    call_here.backend = request.param  # type: ignore[attr-defined]
    return call_here
