"""Large outputs, 1,000 classes and a vocabulary of 32,000: traces and responses, their cost and their error.

CPU time, one thread. Writes benchmarks/results/large_outputs.md.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gauss_newton import cpu_seconds, images, resident_bytes, traces, weights_of, worst
from benchmarks.problems.vocabulary_model import TOKENS, WIDTH, WORDS, Language, language_traces, text_of
from benchmarks.quantizer import processor
from benchmarks.responses import ResNet20
from raysearch.calibration import calibrate
from raysearch.cluster.pool import LocalPool
from raysearch.config import CalibrationConfig, PlacementConfig, SensitivityConfig
from raysearch.evaluation import DataSet, Divergence, Replica, default_forward
from raysearch.placement import place_quantizers
from raysearch.sensitivity.estimators.gauss_newton import ExactGaussNewton, GaussNewton
from raysearch.sensitivity.responses import Method, respond, units_of
from raysearch.sensitivity.sketch import Sketch
from raysearch.simulation import CACHE_BYTES

SKETCH_SIZE = SensitivityConfig().sketch_size
RESULT = Path(__file__).parent / "results" / "large_outputs.md"
CLASSES = 1000
RESNET, TIED, UNTIED = "ResNet-20, 1,000 classes", "language model, tied", "language model, untied"
SAMPLES = {RESNET: 16, TIED: 8, UNTIED: 8}
STEPS = {RESNET: 30, TIED: 10, UNTIED: 10}
DRAWS, ROUNDS, SEEDS = 16, 3, 4
SOME = {RESNET: 16, TIED: 1, UNTIED: 1}  # samples whose exact trace is taken
RESPONDING, CHUNK = 4, 4
PATHS = {"ggn": ("ggn", 1), "4 draws of ggn": ("ggn", 4), "ggn-top": ("ggn-top", 1)}
WHOLE = 2**31
"""A sketch size that projects nothing."""


def make_net(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name != RESNET:
        return Language(name == TIED)
    net = ResNet20()
    net.head = nn.Linear(64, CLASSES)
    return net


def data(name: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels; classes and words are as frequent as 1/rank makes them."""
    generator = torch.Generator().manual_seed(seed)
    if name == RESNET:
        x, kinds = images(count, seed)
        ranks = (1 / torch.arange(1.0, 101)).multinomial(count, True, generator=generator)
        return F.avg_pool2d(x, 2), kinds * 100 + ranks
    return text_of(count, generator)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


def make_replica(name: str, steps: int) -> Replica:
    model = make_net(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(steps):
        x, y = data(name, 16, 100 + step)
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        optimizer.step()
    x, y = data(name, SAMPLES[name], 1)
    return Replica(model.eval(), default_forward, {DataSet.CALIBRATION: [(x, y)]}, Divergence("kl"))


def one_gradient(replica: Replica, names: tuple[str, ...]) -> None:
    x, y = replica.shards[DataSet.CALIBRATION][0]
    torch.autograd.grad(loss_of(replica.model, x, y), [replica.model.get_parameter(n) for n in names])


def measure_traces(name: str, replica: Replica) -> dict[str, Any]:
    """Cost of each path over one gradient of the same samples, and its error on the worst weight."""
    names, some = weights_of(replica.model), SOME[name]
    x, y = replica.shards[DataSet.CALIBRATION][0]
    few = Replica(
        replica.model, default_forward, {DataSet.CALIBRATION: [(x[:some], y[:some])]}, replica.divergence
    )
    if name == RESNET:
        exact = ExactGaussNewton(max_outputs=CLASSES, chunk_size=some)
        exact_seconds, truth = cpu_seconds(lambda: traces(exact, few, names, 0)[0].mean(1))
    else:
        exact_seconds, truth = cpu_seconds(lambda: language_traces(few, names))
    one_gradient(replica, names)
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for path, (kind, draws) in PATHS.items():
            times.setdefault("gradient", []).append(cpu_seconds(lambda: one_gradient(replica, names))[0])
            spent, _ = cpu_seconds(lambda k=kind, d=draws: traces(GaussNewton(k), replica, names, 0, 0, d))
            times.setdefault(path, []).append(spent)
    unit = statistics.median(times["gradient"])
    row: dict[str, Any] = {"weights": len(names), "unit": unit, "exact": exact_seconds / unit}
    for path, (kind, draws) in PATHS.items():
        found = traces(GaussNewton(kind), few, names, 0, 0, DRAWS).mean(2)
        row[path] = statistics.median(times[path]) / unit
        row[f"{path}, error"] = worst(found.reshape(-1, draws, len(names)).mean(1), truth)
    return row


def measure_responses(replica: Replica) -> dict[str, Any]:
    """Cost of all responses over plain forwards, and what sketches of three sizes miss."""
    x = replica.shards[DataSet.CALIBRATION][0][0][:RESPONDING]
    replica = Replica(replica.model, default_forward, {DataSet.CALIBRATION: [x]}, replica.divergence)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        setup = place_quantizers(
            replica.model, (x,), PlacementConfig(weight_bit_widths=(2, 4), ignored_scopes=("*input*",))
        )
    ranges = calibrate(
        setup, LocalPool(replica), 1, CalibrationConfig(weights="min_max", activations="min_max")
    )
    plain, responding, rows = 0.0, 0.0, []
    for shard, options, _ in units_of(setup.options(), 1, CHUNK).values():
        plain += cpu_seconds(lambda o=options: [replica.run(replica.model, x) for _ in o])[0]
        arguments = (setup, ranges, Method(WHOLE, 0, CACHE_BYTES), shard, options, "later")
        spent, answer = cpu_seconds(lambda a=arguments: respond(replica, *a))
        responding += spent
        rows.append(torch.from_numpy(answer["weighted"]))
    whole = torch.cat(rows)
    count, outputs = len(whole), whole.shape[2]
    row: dict[str, Any] = {"options": count, "outputs": outputs, "plain": plain, "whole": responding}
    gram = whole.flatten(1) @ whole.flatten(1).T
    norms, apart = gram.diagonal(), ~torch.eye(count, dtype=torch.bool)
    for size in (256, 1024, SKETCH_SIZE):
        own, cross, spent = [], [], 0.0
        for seed in range(SEEDS):
            sketch = Sketch(outputs, size, seed, 0)
            took, kept = cpu_seconds(lambda s=sketch: torch.stack([s.project(r, 0)[0] for r in whole]))
            found, spent = kept.flatten(1) @ kept.flatten(1).T, spent + took
            own.append((found.diagonal() / norms - 1).abs())
            cross.append(((found - gram).abs() / torch.outer(norms, norms).sqrt())[apart])
        miss = [f(torch.cat(part)) for part in (own, cross) for f in (torch.median, torch.max)]
        row[str(size)] = (min(size, outputs), *map(float, miss), spent / SEEDS)
    return row


def peak_bytes(name: str, what: str) -> float:
    """Peak of resident memory above the model and data, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.large_outputs", "--net", name, "--peak", what]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def print_peak(name: str, what: str) -> None:
    replica = make_replica(name, 0)
    one = one_gradient if what == "gradient" else lambda r, n: traces(GaussNewton(), r, n, 0)
    names, seen, done = weights_of(replica.model), [resident_bytes()], threading.Event()

    def watch() -> None:
        while not done.wait(0.0005):
            seen.append(resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    one(replica, names)
    done.set()
    watcher.join()
    print(max(seen) - seen[0])


def report(found: dict[str, tuple[dict[str, Any], dict[str, Any]]], date: str) -> str:
    """The page."""
    paths = " | ".join(f"{path} | its error" for path in PATHS)
    costs = [f"| network | steps | weights | gradient, s | {paths} | exact, on | peak memory of ggn |"]
    costs += ["|" + "---|" * 12]
    misses = ["| network | options | forwards, s | responses | projecting | kept | norms | Gram entries | "]
    misses = [f"{misses[0]}bytes kept | bytes whole |", "|" + "---|" * 10]
    for name, (row, sketch) in found.items():
        paths = " | ".join(f"{row[p]:.1f} | {row[f'{p}, error']:.1%}" for p in PATHS)
        costs.append(f"| {name} | {STEPS[name]} | {row['weights']} | {row['unit']:.2f} | {paths} | "
                     f"{row['exact']:.0f}, {SOME[name]} | {row['peak']:.2f}x |")  # fmt: skip
        if not sketch:
            continue
        plain, outputs = sketch["plain"], sketch["outputs"]
        for size in (256, 1024, SKETCH_SIZE):
            kept, *miss, spent = sketch[str(size)]
            rows = 8 * sketch["options"] * RESPONDING / 2**20
            own, cross = (f"{a:.1%} / {b:.1%}" for a, b in (miss[:2], miss[2:]))
            misses.append(f"| {name} | {sketch['options']} | {plain:.2f} | {sketch['whole'] / plain:.2f}x | "
                          f"{spent / plain:.2f}x | {kept:,} of {outputs:,} | {own} | {cross} | "
                          f"{rows * kept:.2f} MiB | {rows * outputs:,.1f} MiB |")  # fmt: skip
    tables = ["\n".join(lines) for lines in (costs, misses)]
    return f"""# Large outputs

{date}, {processor()}, one thread, torch {torch.__version__}. CPU time.
ResNet-20 on 16×16 pixels with a head of 1,000 classes; a causal language model of two blocks, width {WIDTH},
{TOKENS} tokens, {WORDS:,} words, whose head is its embedding table (tied) or not. A few steps of training
(of 16 samples each) on synthetic images and text, whose classes and words are as frequent as 1/rank.
Made by `python -m benchmarks.large_outputs`.

## Traces

Costs in units of one gradient of the loss on the same samples ({SAMPLES[RESNET]} images, {SAMPLES[TIED]}
texts), medians of {ROUNDS} rounds in which the paths take turns. Errors are relative to the exact traces, on
the worst weight: root mean square of {DRAWS} draws, or of their means by 4, on as many samples as stand at
"exact, on" (over more they are smaller). Exact: {CLASSES:,} columns for the ResNet; for the language models
all columns of a factor of Wᵀ Λ W, in the space of the last hidden states. Peak memory: resident, above the
model and data, over that of one gradient, each in a process of its own, untrained.

{tables[0]}

ggn: a pair of draws. ggn-top: two exact directions and a draw.

## Responses

{RESPONDING} samples, all weights at 2 and 4 bits, min-max ranges, {CHUNK} options in a unit. Forwards: one
of the float model an option. Responses: rows of all outputs as the units of `measure_responses` make them,
recording included, over those forwards, in turns. Projecting: what a sketch adds, over the same. The default
keeps {SKETCH_SIZE:,} values; up to so many outputs nothing is projected. Errors of {SEEDS} seeds against
the rows themselves, median / worst over options and seeds. Norms: |K̂_qq / K_qq − 1|. Gram entries:
|K̂_qr − K_qr| / √(K_qq K_rr), q ≠ r. Over N samples both fall as 1/√N.

{tables[1]}
"""


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", choices=list(SAMPLES))
    parser.add_argument("--peak", choices=("gradient", "ggn"))
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print_peak(options.net, options.peak)
        return
    found = {}
    for name in [options.net] if options.net else SAMPLES:
        replica = make_replica(name, STEPS[name])
        # A tied head changes nothing for rows of outputs.
        found[name] = (measure_traces(name, replica), {} if name == TIED else measure_responses(replica))
        found[name][0]["peak"] = peak_bytes(name, "ggn") / peak_bytes(name, "gradient")
        print(name, found[name], flush=True)
    print(page := report(found, options.date))
    if not options.net:
        RESULT.write_text(page)


if __name__ == "__main__":
    main()
