"""All responses of a net against as many plain forwards; and scoring assignments by every surrogate.

CPU time of one process, one thread, variants interleaved. Writes benchmarks/results/responses.md.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysearch.calibration import calibrate
from raysearch.cluster.pool import Key, LocalPool, UnitFunction, UnitValue
from raysearch.config import CalibrationConfig, PlacementConfig, SensitivityConfig
from raysearch.evaluation import DataSet, Divergence, Replica, WorkerCache, default_forward
from raysearch.placement import place_quantizers
from raysearch.records import (
    Granularity,
    OptionEffect,
    QuantizationPoint,
    QuantizerGroup,
    QuantizerSetup,
    RangeTable,
    SensitivityTable,
    Site,
    Trace,
)
from raysearch.search import OptionSpace, make_surrogate
from raysearch.sensitivity.responses import measure_responses

RESULT = Path(__file__).parent / "results" / "responses.md"
SHARDS, CHUNK = 4, 8


class Basic(nn.Module):
    """A block of ResNet-20."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Sequential()
        if inner != outer:
            self.down = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.down(x)
        return self.relu(out)


class ResNet20(nn.Module):
    """He et al. 2016, for 32 x 32 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(True))
        widths = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
        self.blocks = nn.Sequential(*(Basic(*sizes) for sizes in widths))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Inverted(nn.Module):
    """A block of MobileNetV2."""

    def __init__(self, inner: int, outer: int, stride: int, factor: int) -> None:
        super().__init__()
        wide, self.is_residual = inner * factor, stride == 1 and inner == outer
        expand = [nn.Conv2d(inner, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(True)]
        self.conv = nn.Sequential(
            *(expand if factor > 1 else []),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide),
            nn.ReLU6(True),
            nn.Conv2d(wide, outer, 1, bias=False), nn.BatchNorm2d(outer),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x + self.conv(x) if self.is_residual else self.conv(x)


def mobile_net() -> nn.Module:
    """MobileNetV2's stages at half their width."""
    stages = [(1, 16, 1, 1), (6, 16, 2, 2), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2)]
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(True)]
    inner = 16
    for factor, outer, repeats, stride in stages:
        for index in range(repeats):
            layers.append(Inverted(inner, outer, 1 if index else stride, factor))
            inner = outer
    layers += [nn.Conv2d(80, 320, 1, bias=False), nn.BatchNorm2d(320), nn.ReLU6(True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(320, 10))


class EncoderBlock(nn.Module):
    """Attention and perceptron, each after a LayerNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """Six blocks over 64 tokens of width 128."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(48, 128)
        self.blocks = nn.Sequential(*(EncoderBlock(128) for _ in range(6)))
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.head(self.blocks(self.embed(x)).mean(1))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-20, 32 px": (ResNet20, (3, 32, 32)),
    "MobileNetV2 x 0.5, 64 px": (mobile_net, (3, 64, 64)),
    "encoder, 64 tokens": (Encoder, (64, 48)),
}


def prepare(name: str, size: int, inputs: bool) -> tuple[Replica, QuantizerSetup, RangeTable]:
    """A net with its shards, places and ranges."""
    torch.manual_seed(0)
    make, shape = NETS[name]
    model = make().eval()
    shards = [torch.randn(size, *shape) for _ in range(SHARDS)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        setup = place_quantizers(
            model,
            (shards[0][:2],),
            PlacementConfig(weight_bit_widths=(2, 4), ignored_scopes=() if inputs else ("*input*",)),
        )
    replica = Replica(model, default_forward, {DataSet.CALIBRATION: shards}, Divergence())
    return (
        replica,
        setup,
        calibrate(setup, LocalPool(replica), 1, CalibrationConfig(weights="min_max", activations="min_max")),
    )


class Interleaved:
    """A pool that runs beside each unit as many plain forwards, and the unit by full forwards.

    The variants take turns within a second or so: what else a machine does then slows all of them alike.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._later, self._full = LocalPool(replica), LocalPool(replace(replica, cache=WorkerCache()))
        self.seconds = {"plain": 0.0, "full": 0.0}

    def run(
        self, function: UnitFunction, units: Mapping[Key, tuple[Any, ...]], shared: tuple[Any, ...] = ()
    ) -> Iterator[tuple[Key, UnitValue]]:
        """Answers of the units themselves."""
        for key, (shard, options, mode) in units.items():
            batch = self._replica.shards[DataSet.CALIBRATION][shard]
            start = time.process_time()
            with torch.no_grad():
                for _ in options:
                    self._replica.model(batch)
            middle = time.process_time()
            list(self._full.run(function, {key: (shard, options, "full")}, shared))
            self.seconds["full"] += time.process_time() - middle
            self.seconds["plain"] += middle - start
            yield from self._later.run(function, {key: (shard, options, mode)}, shared)

    def close(self) -> None:
        """Nothing is held."""


def measure(name: str, size: int, inputs: bool, rounds: int) -> tuple[int, dict[str, float]]:
    """Options, and median CPU seconds of each variant."""
    replica, setup, ranges = prepare(name, size, inputs)
    times: dict[str, list[float]] = {"plain": [], "full": [], "later": []}
    for _ in range(rounds):
        pool = Interleaved(replace(replica, cache=WorkerCache()))
        start = time.process_time()
        measure_responses(setup, ranges, pool, SHARDS, SensitivityConfig(option_chunk=CHUNK))
        spent = time.process_time() - start
        for label, seconds in pool.seconds.items():
            times[label].append(seconds)
        times["later"].append(spent - sum(pool.seconds.values()))
    return len(setup.options()), {label: statistics.median(values) for label, values in times.items()}


def surrogate_seconds() -> dict[str, float]:
    """CPU seconds for 100,000 assignments of 54 groups with 4 widths, by surrogate."""
    names = [f"layer{i}.weight" for i in range(54)]
    points = {
        n: QuantizationPoint(n, "weight", (Site(n, "parameter", "weight"),), (8, 8), Granularity(0))
        for n in names
    }
    setup = QuantizerSetup(points, {n: QuantizerGroup(n, (n,), (2, 3, 4, 8)) for n in names})
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((216, 256))
    effects = {o: OptionEffect(*o, "weight", *rng.random(4).tolist()) for o in setup.options()}
    table = SensitivityTable(
        {n: Trace(n, 1.0, 0.1, 0.1, 0.1, 8, 64, "ggn", True) for n in names}, effects, rows @ rows.T, ""
    )
    choices = rng.integers(0, 4, (100_000, 54))
    medians = {}
    for name in ("response", "hawq", "single-loss", "weight-error"):
        surrogate = make_surrogate(name, table, OptionSpace(setup))
        times = []
        for _ in range(5):
            start = time.process_time()
            surrogate.predict(choices)
            times.append(time.process_time() - start)
        medians[name] = statistics.median(times)
    return medians


def processor() -> str:
    """Model name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    # Asked only where needed: Python starts a process to find out.
    return next(names, "") or platform.processor()


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Responses of all options, and surrogates",
        "",
        f"{options.date}, {processor()}, torch {torch.__version__}, one thread. CPU time of one process,",
        f"median of {options.rounds} round(s); {SHARDS} shards of {options.size} samples, {CHUNK} options in",
        "a unit; weights at 2 and 4 bits, inputs at 8; caches start empty in every round, and the variants",
        "take turns unit by unit. Plain: as many forwards of the float model and nothing else. Full: all",
        "responses by whole forwards, fake-quantization and judging included. Later: all of",
        "`measure_responses`, with its recordings, its check and its Gram matrices.",
        "Made by `benchmarks/responses.py`.",
        "",
        "| net | quantized | options | forwards | plain, s | full, s | later, s | full/plain | later/plain |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in NETS:
        for inputs in (False, True):
            count, medians = measure(name, options.size, inputs, options.rounds)
            plain, full, later = (medians[label] for label in ("plain", "full", "later"))
            what = "weights and inputs" if inputs else "weights"
            lines.append(
                f"| {name} | {what} | {count} | {count * SHARDS} | {plain:.2f} | {full:.2f} | {later:.2f} | "
                f"{full / plain:.2f} | {later / plain:.2f} |"
            )
            print(lines[-1], flush=True)
    lines += [
        "",
        "100,000 assignments of 54 groups with 4 widths, CPU seconds: "
        + ", ".join(f"`{name}` {seconds:.2f}" for name, seconds in surrogate_seconds().items())
        + ".",
    ]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
