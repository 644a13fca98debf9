"""Fake-quantize forward and backward, per channel, on weights of convolutions.

Ours against torch's native learnable operation and a chain of plain autograd operations, interleaved in one
process, one thread, CPU time. Writes benchmarks/results/quantizer.md.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from raysearch.quantizer import fake_quantize, quant_levels

SHAPES = tuple((n, n, 3, 3) for n in (16, 32, 64, 128, 256, 512))
RESULT = Path(__file__).parent / "results" / "quantizer.md"
NAMES = ("raysearch", "torch native", "plain autograd")


def candidates(shape: tuple[int, ...], bits: int) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """Each gives (dx, dscale) of the same x, scale and upstream gradient."""
    torch.manual_seed(0)
    low, high = quant_levels(bits, signed=True)
    gamma = (high * shape[1] * shape[2] * shape[3]) ** -0.5
    x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)
    flat = (torch.rand(shape[0]) + 1) * (3 / 2**bits)
    scale = flat.clone().reshape(-1, 1, 1, 1).requires_grad_()
    flat.requires_grad_()
    zeros = torch.zeros(shape[0])

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(fake_quantize(x, scale, 0, low, high, gamma), (x, scale), grad)

    def native() -> tuple[Tensor, ...]:
        y = torch._fake_quantize_learnable_per_channel_affine(x, flat, zeros, 0, low, high, gamma)
        return torch.autograd.grad(y, (x, flat), grad)

    def plain() -> tuple[Tensor, ...]:
        learned = (scale * gamma) + (scale * (1 - gamma)).detach()
        v = torch.clamp(x / learned, low, high)
        y = (v + (v.round() - v).detach()) * learned
        return torch.autograd.grad(y, (x, scale), grad)

    return dict(zip(NAMES, (ours, native, plain), strict=True))


def measure(shape: tuple[int, ...], bits: int, rounds: int) -> dict[str, float]:
    """Median CPU microseconds of a forward and backward."""
    functions = candidates(shape, bits)
    repeats = max(1, 2**20 // torch.Size(shape).numel())
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 2):
        for name, function in functions.items():
            start = time.process_time()
            for _ in range(repeats):
                function()
            if number >= 2:
                times[name].append((time.process_time() - start) / repeats * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def processor() -> str:
    """Model name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if "model name" in line), platform.processor()
    )


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    options = parser.parse_args()
    torch.set_num_threads(1)
    heading = [
        f"{options.date}, {processor()}, one thread, torch {torch.__version__}. CPU time in µs, median of",
        f"{options.rounds} interleaved rounds in one process; per channel, gradients of weight and scale.",
        "Made by `benchmarks/quantizer.py`.",
    ]
    lines = [
        "# Fake-quantize, forward and backward",
        "",
        *heading,
        "",
        "| weight | bits | raysearch | torch native | plain autograd | native / ours | plain / ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape in SHAPES:
        for bits in (4, 8):
            medians = measure(shape, bits, options.rounds)
            own, native, plain = (medians[name] for name in NAMES)
            lines.append(
                f"| {'x'.join(map(str, shape))} | {bits} | {own:.0f} | {native:.0f} | {plain:.0f} | "
                f"{native / own:.2f}x | {plain / own:.2f}x |"
            )
    lines += [
        "",
        "Native is `torch._fake_quantize_learnable_per_channel_affine`; plain is division, clamp, round with",
        "a detached residual, and multiplication.",
    ]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
