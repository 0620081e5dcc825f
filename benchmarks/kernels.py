"""Time the CPU kernels on one thread against torch: `python -m benchmarks.kernels`.

All contenders take turns in every round, and medians are reported, so that a busy machine disturbs
them alike. Results are first compared with the specification on a part of the data; nothing is
reported when one is wrong.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gossamer.kernels import (
    CHUNK_ELEMENTS,
    FORMATS,
    Format,
    FusedAdamW,
    choose_unit_exponents,
    chunk_count,
    decode,
    encode,
    to_counts,
    to_float,
)
from gossamer.kernels.decode import reference as decode_reference
from gossamer.kernels.encode import reference as encode_reference

SHARES = 4
PAYLOADS = 3
VERIFIED_CHUNKS = 64
Contender = tuple[str, str, Callable[[], object]]


def median_milliseconds(contenders: list[Contender], rounds: int) -> dict[str, float]:
    """Run all contenders in turn, `rounds` times after one to warm up; give medians by name."""
    samples: dict[str, list[float]] = {name: [] for name, _, _ in contenders}
    for turn in range(rounds + 1):
        for name, _, work in contenders:
            start = time.perf_counter()
            work()
            if turn > 0:
                samples[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in samples.items()}


def verify(x: Tensor, base: Tensor, unit_exponent: Tensor, payload: Tensor, format: Format) -> None:
    """Raise RuntimeError unless both kernels give the bits of the specification on these data."""
    bases = base.clone(), base.clone()
    encoded = encode(x, bases[0], unit_exponent, format=format, shares=SHARES)
    expected = encode_reference.encode(x, bases[1], unit_exponent, format=format, shares=SHARES)
    same = torch.equal(encoded.payload, expected[0]) and torch.equal(*bases)
    models = x.clone(), x.clone()
    for model, shared, run in zip(models, bases, (decode, decode_reference.decode), strict=True):
        run([payload], [SHARES], [1], model, shared, unit_exponent, format=format)
    if not (same and torch.equal(*models) and torch.equal(*bases)):
        raise RuntimeError(f"{format} is not what the specification says; there is no report")


def torch_whole(x: Tensor, shared: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Difference, one top-k over the whole buffer, values."""
    d = x - shared
    index = d.abs().topk(k).indices
    return index, d.gather(0, index)


def torch_chunks(x: Tensor, shared: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Difference, top-k of every chunk, values."""
    d = (x - shared).view(-1, CHUNK_ELEMENTS)
    index = d.abs().topk(k, dim=1).indices
    return index, d.gather(1, index)


def contenders_for(n: int) -> list[Contender]:
    """Build the data and everything that is timed: (name, what it is compared with, work)."""
    x = torch.randn(n)
    unit_exponent = choose_unit_exponents(x)
    base = to_counts(x + 0.01 * torch.randn(n), unit_exponent)
    shared = to_float(base, unit_exponent)
    copied = torch.empty_like(x)
    result: list[Contender] = [("copy", "copy", lambda: copied.copy_(x))]

    for k in sorted({k for k, _ in FORMATS}):
        name = f"torch.topk {k}/4096"
        result += [
            (f"{name} whole", "copy", partial(torch_whole, x, shared, k * chunk_count(n))),
            (f"{name} chunks", "copy", partial(torch_chunks, x, shared, k)),
        ]
    for k, bits in FORMATS:
        format = Format(k, bits)
        payloads = [
            encode(
                x + 0.01 * torch.randn(n),
                base.clone(),
                unit_exponent,
                format=format,
                shares=SHARES,
            ).payload
            for _ in range(PAYLOADS)
        ]
        part = min(n, VERIFIED_CHUNKS * CHUNK_ELEMENTS)
        few = encode(
            x[:part] * 1.01,
            base[:part].clone(),
            unit_exponent[: chunk_count(part)],
            format=format,
            shares=SHARES,
        )
        verify(x[:part], base[:part], unit_exponent[: chunk_count(part)], few.payload, format)
        own = base.clone()

        def run_encode(format: Format = format, own: Tensor = own) -> object:
            return encode(x, own, unit_exponent, format=format, shares=SHARES)

        model, target = x.clone(), base.clone()

        def run_decode(
            format: Format = format,
            payloads: list[Tensor] = payloads,
            model: Tensor = model,
            target: Tensor = target,
        ) -> object:
            weights = [SHARES] * PAYLOADS, [1] * PAYLOADS
            return decode(payloads, *weights, model, target, unit_exponent, format=format)

        supports = [
            decode_reference.unpack(payload, n, format).indices
            + CHUNK_ELEMENTS * torch.arange(chunk_count(n))[:, None]
            for payload in payloads
        ]

        def run_index_add(
            supports: list[Tensor] = supports, model: Tensor = model, target: Tensor = target
        ) -> None:
            # Indices and values are ready; the kernel starts from packed bits.
            for support in supports:
                flat = support.view(-1)
                model.index_add_(0, flat, copied[: flat.numel()])
                target.index_add_(0, flat, base[: flat.numel()])

        label = f"{k}/4096 {bits} bit"
        result += [
            (f"encode {label}", f"torch.topk {k}/4096 whole", run_encode),
            (f"index_add_ x{PAYLOADS} {label}", "copy", run_index_add),
            (f"decode x{PAYLOADS} {label}", f"index_add_ x{PAYLOADS} {label}", run_decode),
        ]

    theirs, ours = (torch.nn.Parameter(x.clone()) for _ in range(2))
    theirs.grad, ours.grad = shared.clone(), shared.clone()
    result += [
        ("torch AdamW fused", "copy", torch.optim.AdamW([theirs], fused=True).step),
        ("FusedAdamW", "torch AdamW fused", FusedAdamW([ours]).step),
    ]
    return result


def main() -> None:
    """Verify, time, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=2441, help="4096 elements each")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    n = options.chunks * CHUNK_ELEMENTS
    contenders = contenders_for(n)
    medians = median_milliseconds(contenders, options.rounds)

    table = Table(title=f"{n / 1e6:.1f}M float32 elements, one thread, {options.rounds} rounds")
    table.add_column("kernel")
    table.add_column("ms, median", justify="right")
    table.add_column("ns per element", justify="right")
    table.add_column("compared with")
    table.add_column("times as fast", justify="right")
    for name, baseline, _ in contenders:
        baselines = [baseline]
        if name.startswith("encode"):
            baselines.append(baseline.replace("whole", "chunks"))
        for position, other in enumerate(baselines):
            table.add_row(
                name if position == 0 else "",
                f"{medians[name]:.2f}" if position == 0 else "",
                f"{1e6 * medians[name] / n:.2f}" if position == 0 else "",
                other,
                f"{medians[other] / medians[name]:.2f}",
            )
    # Wide enough for one line per row where the output is not a terminal.
    Console(width=max(112, Console().width)).print(table)


if __name__ == "__main__":
    main()
