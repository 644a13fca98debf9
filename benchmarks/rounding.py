"""What rounding brings on a trained net, and the CPU time of its table against that of the responses.

Writes benchmarks/results/rounding.md. Needs the data of examples/fashion_mnist.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import statistics
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.responses import NETS, processor
from raysearch.calibration import calibrate
from raysearch.cluster.pool import LocalPool
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
PAGE = """\
# Rounding

{date}, {machine}, torch {torch}, one thread. Made by `python -m benchmarks.rounding`.

ResNet-20 on Fashion-MNIST (examples/fashion_mnist), weights alone, all at one width, nothing trained; ranges
and second moments from {num_calibration} training images. KL to the float net × 1000 and, in brackets,
accuracy on the 10,000 test images; the float net has {accuracy:.4f}. Guided moments are drawn: the mean over
{num_seeds} seeds, ± its standard error.

| rounding | {widths} |
|---|{rule}
{quality}

CPU seconds of one process: the table of all weights at {choices} bits, of which the moments, and
the responses of the same options; {num_shards} shards of {size} samples.

| net | weights | moments, s | table, s | responses, s | table/responses |
|---|---|---|---|---|---|
{costs}
"""


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


def cost_row(name: str, replica: Replica, setup: QuantizerSetup, ranges: RangeTable) -> str:
    """CPU seconds of the moments, of the whole table, and of the responses."""
    pool, settings = LocalPool(replica), RoundingConfig()
    num_shards = len(replica.shards[DataSet.CALIBRATION])
    names = tuple(setup.of_kind("weight"))
    start = time.process_time()
    take_moments(pool, names, num_shards, settings, seed=0)
    moments = time.process_time() - start
    start = time.process_time()
    round_weights(setup, ranges, pool, num_shards, settings)
    table = time.process_time() - start
    start = time.process_time()
    measure_responses(setup, ranges, pool, num_shards, SensitivityConfig())
    responses = time.process_time() - start
    row = (
        f"| {name} | {len(names)} | {moments:.2f} | {table:.2f} | {responses:.2f} | {table / responses:.2f} |"
    )
    print(row, flush=True)
    return row


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calibration", type=int, default=512)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    options = parser.parse_args()
    torch.set_num_threads(1)
    problem = Fashion(options.calibration)
    quality = [*quality_rows(problem), guided_row(problem)]
    images = problem.replica.shards[DataSet.CALIBRATION][: options.shards]
    costs = [cost_row("ResNet-20, Fashion-MNIST", *prepare(problem.model, images))]
    for name, (make, shape) in NETS.items():
        torch.manual_seed(0)
        model = make().eval()
        shards = [torch.randn(options.size, *shape) for _ in range(options.shards)]
        costs.append(cost_row(name, *prepare(model, shards)))
    text = PAGE.format(
        date=options.date,
        machine=processor(),
        torch=torch.__version__,
        num_calibration=options.calibration,
        num_seeds=GUIDED_SEEDS,
        accuracy=problem.accuracy(problem.reference),
        widths=" | ".join(f"{num_bits} bits" for num_bits in WIDTHS),
        rule="---|" * len(WIDTHS),
        quality="\n".join(quality),
        choices=", ".join(map(str, WIDTHS)),
        num_shards=options.shards,
        size=options.size,
        costs="\n".join(costs),
    )
    RESULT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
