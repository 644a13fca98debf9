"""A training step of a quantized net over one of the float net: forward, backward and optimizer.

CPU time of one process, one thread, the two interleaved step by step; the ratio is the median over pairs.
Writes benchmarks/results/training_step.md.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.responses import EncoderBlock, ResNet20, processor
from raysearch.calibration import calibrate
from raysearch.cluster.pool import LocalPool
from raysearch.config import PlacementConfig, TrainingConfig
from raysearch.controller import create_controller
from raysearch.evaluation import DataSet, Divergence, Replica, default_forward
from raysearch.placement import place_quantizers
from raysearch.records import BitAssignment
from raysearch.training.optimizer import Optimizer

RESULT = Path(__file__).parent / "results" / "training_step.md"
WIDTHS = PlacementConfig(weight_bit_widths=(4,), activation_bit_widths=(8,))
Step = Callable[[], None]
REST = """
## Where the rest goes

Measured 2026-11-28 at commit 8403a05, by switching quantizers off in one process, step by step in turn:
medians of 15 steps, CPU ms, both cores busy with other work.

| net | float | hooks, no quantizer acts | weights alone | activations alone | all |
|---|---|---|---|---|---|
| ResNet-20 | 180 | 190 | 202 | 256 | 268 |
| encoder | 38.4 | 40.2 | 44.3 | 50.6 | 52.9 |

So most of it is arithmetic on activations: four passes over each forward and eight backward. Both aims are
missed. What was tried, with the same bits but for the last, as ratios before and after in one process:

- Pieces of 131,072 elements, whose temporaries stay in the cache: 1.51 and 1.54 or 1.55 (ResNet-20).
- Two buffers for temporaries that are kept from call to call: 1.58 and 1.52 (ResNet-20), 1.43 and 1.45
  (encoder); where glibc keeps what is freed, 1.46 and 1.54 (ResNet-20).
- glibc keeping what is freed, in turn off, on, off, on: 1.55, 1.50, 1.46, 1.47 (ResNet-20), 1.29, 1.30,
  1.39, 1.31 (encoder).
- `torch.compile` of both halves, of 1,048,576 elements: 243 and 176 µs forward, 937 and 730 backward. Some
  zeros have the other sign, and every worker would need a compiler.

- Values kept from the forward and bounds in units of x, so that the backward of an activation reads and
  writes half as much (four passes): of 26 ms in a step of 197, 21 to 24 (ResNet-20); 4.3 and 4.0 (encoder).
  Ratios in turn, on a core of its own: 1.48, 1.49 and 1.42, 1.51; 1.30, 1.32 and 1.30, 1.31.
- An addition in place whose backward makes no zeros, and no sign taken of a scale that is positive: 1.43,
  1.45, 1.43 and 1.45, 1.43, 1.44 (ResNet-20); 1.31, 1.30, 1.30 and 1.29, 1.31, 1.32 (encoder).

None is worth its lines: none gains more than what the same measurement differs by, or it is not exact. For
comparison, of 1,048,576 elements the forward takes 0.35 ms; torch.fake_quantize_per_tensor_affine 3.1 ms.

## Two workers

Two Ray Train workers (gloo, one thread each) beside one at the same global batch, the same ResNet-20 on quiet
cores, in turn, as training itself reports it; measured 2026-11-28 at commit a10124b.

| global batch | one worker, samples/s | two workers | ratio (pairs) | aim |
|---|---|---|---|---|
| 128 | 260 | 410 | 1.58 (1.58, 1.65, 1.36) | 1.7 |
| 512 | 197 | 453 | 2.30 (2.18, 2.43) | 1.7 |

A step of 64 images a worker, a quarter of a second, is too small for 1.7. At 512 one worker is slower a
sample than at 128, its tensors being larger than the cache; over its best rate two workers have 1.74.
"""
"""Goes below the table: measured once, by hand."""


class SmallEncoder(nn.Module):
    """Two blocks over 64 tokens of width 128."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(48, 128)
        self.blocks = nn.Sequential(EncoderBlock(128), EncoderBlock(128))
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.head(self.blocks(self.embed(x)).mean(1))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], float]] = {
    "ResNet-20, batch 64 of 3 x 32 x 32": (ResNet20, (64, 3, 32, 32), 1.3),
    "encoder of two layers, batch 16 of 64 x 128": (SmallEncoder, (16, 64, 48), 1.25),
}
"""Name → net, shape of a batch, and the ratio that is aimed at."""


def make_steps(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[Step, Step, int]:
    """A float step, a quantized step, and how many quantizers there are."""
    torch.manual_seed(0)
    batch = (torch.randn(shape), torch.randint(10, shape[:1]))
    plain = build()
    setup = place_quantizers(plain.eval(), (batch[0][:2],), WIDTHS)
    replica = Replica(copy.deepcopy(plain), default_forward, {DataSet.CALIBRATION: [batch]}, Divergence("kl"))
    ranges = calibrate(setup, LocalPool(replica), 1)
    quantized = build()
    quantized.load_state_dict(plain.state_dict())
    controller = create_controller(quantized, setup, ranges, BitAssignment.extreme(setup, 0))
    settings = TrainingConfig()

    def step_of(model: nn.Module, optimizer: torch.optim.Optimizer | Optimizer) -> Step:
        model.train()

        def step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()

        return step

    plain.requires_grad_()
    float_step = step_of(plain, torch.optim.AdamW(plain.parameters(), settings.learning_rate))
    return float_step, step_of(quantized, Optimizer(controller, settings)), len(setup.points)


def measure(steps: tuple[Step, Step], pairs: int) -> tuple[list[float], list[float]]:
    """CPU seconds of each, in pairs, after two warm-ups."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(pairs + 2):
        for step, seconds in zip(steps, times, strict=True):
            start = time.process_time()
            step()
            if number >= 2:
                seconds.append(time.process_time() - start)
    return times


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    parser.add_argument("--note", default="", help="what a reader should know of the machine")
    options = parser.parse_args()
    torch.set_num_threads(1)
    heading = f"{options.date}, {processor()}, one thread, torch {torch.__version__}."
    lines = [
        "# A training step, quantized over float",
        "",
        heading,
        f"CPU time, {options.pairs} interleaved pairs in one process; weights 4 bits, activations 8, all",
        f"scales learned. Made by `python -m benchmarks.training_step`.{options.note and ' '}{options.note}",
        "",
        "| net | quantizers | float, ms | quantized, ms | ratio (median of pairs) | quartiles | aim |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (build, shape, aim) in NETS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            *steps, count = make_steps(build, shape)
        plain, quantized = measure((steps[0], steps[1]), options.pairs)
        ratios = [other / one for one, other in zip(plain, quantized, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        medians = [1e3 * statistics.median(seconds) for seconds in (plain, quantized)]
        lines.append(
            f"| {name} | {count} | {medians[0]:.1f} | {medians[1]:.1f} | {middle:.2f} | {low:.2f} … "
            f"{high:.2f} | {aim} |"
        )
    text = "\n".join(lines) + "\n" + REST
    RESULT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
