"""Every Triton kernel compiles ahead of time for the GPUs it is written for, without one."""

import os
import subprocess
import sys

import pytest
import triton
from kernel_cases import ALL_FORMATS, format_name
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gossamer.kernels.decode import gpu as decode_gpu
from gossamer.kernels.encode import gpu as encode_gpu
from gossamer.kernels.optimizer import gpu as optimizer_gpu

pytestmark = pytest.mark.skipif(
    bool(triton.knobs.runtime.interpret), reason="TRITON_INTERPRET replaces the compiler"
)

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
targets = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
formats = pytest.mark.parametrize("format", ALL_FORMATS, ids=format_name)

POINTERS = {
    "x_ptr": "*fp32",
    "base_ptr": "*i32",
    "unit_exponent_ptr": "*i8",
    "record_ptr": "*i32",
    "scale_ptr": "*i16",
    "skipped_ptr": "*i32",
    "status_ptr": "*i32",
    "index_ptr": "*i32",
    "weight_ptr": "*fp32",
    "bound_ptr": "*fp32",
    "multiplicity_ptr": "*i32",
}
INTEGERS = {"n", "shares", "payloads", "row_words"}


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compile_for(kernel, target, constants, options):
    signature, aligned = {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = POINTERS.get(name, "*fp32")
            aligned[(position,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32" if name in INTEGERS else "fp32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=target, options=options).asm


@targets
@formats
def test_encode_kernel_compiles(target, format):
    asm = compile_for(
        encode_gpu._encode_kernel,
        target,
        encode_gpu.kernel_constants(format),
        encode_gpu.LAUNCH[target.backend],
    )
    if target.backend == "cuda":
        assert "fma.rn.f32" not in asm["ptx"]
        assert ".ftz" not in asm["ptx"]
        # Two loads of 16 bytes per thread for the model and the base, at least.
        assert asm["ptx"].count("ld.global.v4") >= 2
    else:
        assert len(asm["hsaco"]) > 0


@targets
@formats
@pytest.mark.parametrize("has_model", [False, True], ids=["base", "base_and_model"])
def test_decode_kernel_compiles(target, format, has_model):
    asm = compile_for(
        decode_gpu._decode_kernel,
        target,
        decode_gpu.kernel_constants(format, has_model=has_model),
        decode_gpu.LAUNCH[target.backend],
    )
    if target.backend == "cuda":
        assert "fma.rn.f32" not in asm["ptx"]
        assert ".ftz" not in asm["ptx"]
    else:
        assert len(asm["hsaco"]) > 0


@targets
def test_adamw_kernel_compiles(target):
    constants = {"BLOCK": optimizer_gpu.BLOCK_ELEMENTS}
    asm = compile_for(optimizer_gpu._adamw_kernel, target, constants, optimizer_gpu.LAUNCH)
    assert "cubin" in asm or "hsaco" in asm


@targets
@pytest.mark.parametrize("first", [False, True], ids=["later", "first"])
@pytest.mark.parametrize(
    ("has_momentum", "nesterov"), [(False, False), (True, False), (True, True)]
)
def test_sgd_kernel_compiles(target, first, has_momentum, nesterov):
    constants = {
        "HAS_MOMENTUM": has_momentum,
        "FIRST": first,
        "NESTEROV": nesterov,
        "BLOCK": optimizer_gpu.BLOCK_ELEMENTS,
    }
    asm = compile_for(optimizer_gpu._sgd_kernel, target, constants, optimizer_gpu.LAUNCH)
    assert "cubin" in asm or "hsaco" in asm


def test_package_imports_without_triton_and_numba_and_alone():
    """And encodes on a CPU where there is no Triton."""
    program = """
import sys
sys.modules["triton"] = None
import gossamer.kernels as k
import torch
assert "numba" not in sys.modules
assert not any(name in sys.modules for name in ("gossamer.engine", "gossamer.transport"))
x = torch.randn(5000)
e = k.choose_unit_exponents(x)
p = k.encode(x, k.to_counts(x * 0.9, e), e, format=k.Format(64, 1), shares=1).payload
k.check(p, 5000, k.Format(64, 1))
"""
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=100)
