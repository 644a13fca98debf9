"""The search beside the usual ways to choose widths, on a ResNet-20 trained on Fashion-MNIST.

Weights at 2, 3, 4 or 8 bits and activations at 4 or 8, nothing trained afterwards. At each of five budgets
every method chooses on the same validation images; what it chose is then measured on the test images, which
no method saw. Writes benchmarks/results/fashion.md and fashion.png. Needs the data of examples/fashion_mnist.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from raysearch.cluster.pool import LocalPool
from raysearch.config import SearchConfig, load_config
from raysearch.evaluation import DataSet
from raysearch.pipeline.inputs import check_inputs
from raysearch.pipeline.stages import make_objective, make_ranges, make_replica, search_shards
from raysearch.records import (
    BitAssignment,
    Budget,
    CostModel,
    QuantizerSetup,
    SensitivityTable,
    is_feasible,
    parse_budgets,
)
from raysearch.search import (
    BudgetSolver,
    OptionSpace,
    Race,
    ShardValues,
    make_limits,
    make_surrogate,
    search_assignment,
)
from raysearch.sensitivity import measure_sensitivity
from raysearch.simulation import MeasuredObjective

FloatArray = npt.NDArray[np.float64]

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
SETTINGS = [
    "placement.weight_bit_widths=[2,3,4,8]",
    "placement.activation_bit_widths=[4,8]",
    "search.objective=loss",
    "search.num_samples=2500",
    "search.shard_size=250",
]
PAGE = """\
# Which widths: the search beside the usual ways

{date}, {machine}, one thread, torch {torch}. Made by `python -m benchmarks.fashion`.

ResNet-20 on Fashion-MNIST (examples/fashion_mnist), {groups} groups; weights at 2, 3, 4 or 8 bits,
activations at 4 or 8; nothing is trained afterwards. Every method chooses by the cross-entropy on the same
2,500 validation images (HAWQ by its surrogate alone); the 10,000 test images were seen by none. `raysearch`
and random search: {trials} trials, {seeds} seeds, the median and, in brackets, the worst. *Measured*: passes
over the validation images that were asked for. Greedy is AIMET's scheme. Uniform is the best uniform
assignment that fits. At 8 bits throughout: {whole.validation:.4f} on validation, {whole.test:.4f} and
{whole.accuracy:.2%} on test.

| budget | method | validation loss | test loss | test accuracy | measured |
|---|---|---|---|---|---|
{rows}

Budgets at which the worst seed of `raysearch` is no worse than the method: {verdict}.

![validation loss by budget and method](fashion.png)
"""
METHODS = ("raysearch", "uniform", "HAWQ, exact ILP", "greedy by single losses", "random search")


@dataclass(frozen=True)
class Choice:
    """What a method chose: value on the validation images, then test loss and accuracy."""

    validation: float
    test: float
    accuracy: float
    measured: int


class Measured:
    """Values by assignment and shard, measured when first asked for; counts what each caller asks for."""

    def __init__(self, objective: MeasuredObjective) -> None:
        self.objective, self.asked = objective, 0
        self.known: dict[tuple[str, int], ShardValues] = {}

    def __call__(
        self, assignments: Mapping[int, BitAssignment], shards: Sequence[int]
    ) -> dict[int, dict[int, ShardValues]]:
        """As `MeasuredObjective`."""
        self.asked += len(assignments) * len(shards)
        new = {n: a for n, a in assignments.items() if any((a.digest(), s) not in self.known for s in shards)}
        for number, values in (self.objective(new, shards) if new else {}).items():
            self.known |= {(new[number].digest(), shard): value for shard, value in values.items()}
        return {n: {s: self.known[a.digest(), s] for s in shards} for n, a in assignments.items()}

    def values(self, assignment: BitAssignment, num_shards: int) -> FloatArray:
        """One value a sample, or a shard where samples have none."""
        by_shard = self({0: assignment}, range(num_shards))[0]
        return np.concatenate([by_shard[shard][0] for shard in sorted(by_shard)])

    def mean(self, assignments: Sequence[BitAssignment], num_shards: int) -> list[float]:
        """Mean over all samples, one an assignment."""
        got = self(dict(enumerate(assignments)), range(num_shards))
        return [float(np.concatenate([got[n][s][0] for s in sorted(got[n])]).mean()) for n in sorted(got)]


class Problem:
    """The net, calibrated, rounded and with its sensitivity measured, and its two sets of images.

    Args:
        settings: those of a run, `KEY=VALUE`; among them how weights are rounded.
    """

    def __init__(self, settings: Sequence[str]) -> None:
        sys.path.insert(0, str(ROOT / "examples" / "fashion_mnist"))
        from fashion_mnist import load_data
        from task import make_task

        start = time.process_time()
        task = make_task()
        inputs = check_inputs(task, load_config(assignments=settings), ["avg_bits<=8"])
        shards, per_sample = search_shards(inputs)
        pool = LocalPool(make_replica(inputs, shards).place())
        ranges = make_ranges(inputs, pool)
        self.inputs, self.ranges, self.pool = inputs, ranges, pool
        self.setup: QuantizerSetup = inputs.setup
        self.table: SensitivityTable = measure_sensitivity(
            inputs.setup,
            ranges,
            lambda part: pool,
            {DataSet.CALIBRATION: len(inputs.samples.calibration)},
            inputs.config.sensitivity,
        )
        self.num_shards = len(shards)
        self.validation = Measured(make_objective(inputs, ranges, pool, per_sample))
        test = load_data()[2].tensors
        batches = list(zip(*(part.split(500) for part in test), strict=True))
        self.test_batches, self.num_test = batches, len(batches)
        held_out = LocalPool(make_replica(inputs, batches).place())
        self.test = Measured(make_objective(inputs, ranges, held_out, per_sample))
        metric = load_config(assignments=[*settings, "search.objective=accuracy"])
        scored = check_inputs(task, metric, ["avg_bits<=8"])
        self.accuracy = Measured(make_objective(scored, ranges, held_out, False))
        self.seconds = time.process_time() - start
        self.model = CostModel(self.setup)

    def uniform(self, weight: int, activation: int) -> BitAssignment:
        """One width for all weights and one for all activations; single-width groups keep theirs."""
        widths = {"weight": weight, "activation": activation}
        return BitAssignment(
            {
                name: bits if bits in group.bit_widths else max(group.bit_widths)
                for name, group in self.setup.groups.items()
                for bits in (widths[self.setup.group_kind(name)],)
            }
        )

    def judge(self, assignment: BitAssignment, measured: int) -> Choice:
        """All three figures of a choice."""
        (value,) = self.validation.mean([assignment], self.num_shards)
        (test,) = self.test.mean([assignment], self.num_test)
        (accuracy,) = self.accuracy.mean([assignment], self.num_test)
        return Choice(value, test, accuracy, measured)


def budget_texts(problem: Problem) -> dict[str, list[str]]:
    """Name → budgets, set at what uniform assignments cost and halfway between two of them."""

    def cost(kind: str, weight: int, activation: int) -> int:
        return int(problem.model.costs(problem.uniform(weight, activation))[kind])

    half = (cost("size", 2, 8) + cost("size", 3, 8)) // 2
    return {
        "size of 2.5 bits": [f"size<={half}B"],
        "size of w3a8": [f"size<={cost('size', 3, 8)}B"],
        "size of w4a8": [f"size<={cost('size', 4, 8)}B"],
        "size and BOPs of w4a4": [f"size<={cost('size', 4, 4)}B", f"bops<={cost('bops', 4, 4)}"],
        "BOPs of w3a8": [f"bops<={cost('bops', 3, 8)}"],
    }


def greedy(problem: Problem, budgets: Sequence[Budget]) -> tuple[BitAssignment, int]:
    """AIMET's scheme: every option alone beside 8 bits elsewhere, then applied from the least loss up.

    An option only ever lowers its group; it stops as soon as the budgets hold.
    """
    bits = dict(problem.uniform(8, 8).bits)
    options = [(g, b) for g, group in problem.setup.groups.items() for b in group.bit_widths if b < bits[g]]
    alone = problem.validation.mean([BitAssignment({**bits, g: b}) for g, b in options], problem.num_shards)
    for _, (group, width) in sorted(zip(alone, options, strict=True)):
        if is_feasible(budgets, problem.model, BitAssignment(bits)):
            break
        bits[group] = min(bits[group], width)
    return BitAssignment(bits), len(options)


def hawq_optimum(problem: Problem, budgets: Sequence[Budget]) -> BitAssignment:
    """The exact optimum of Σ trace · ‖ΔW‖² within the budgets (Dong et al., 2020); nothing is measured."""
    space = OptionSpace(problem.setup)
    solver = BudgetSolver(space, make_limits(space, budgets, problem.model))
    return space.assignment(solver.exact(make_surrogate("hawq", problem.table, space).option_costs).choices)


def random_search(problem: Problem, budgets: Sequence[Budget], count: int, seed: int) -> BitAssignment:
    """The best of so many random assignments, each made to fit and to spend its budgets.

    What gives way, and what the rest is spent on, is drawn with the widths: costs that fall with the width.
    """
    space = OptionSpace(problem.setup)
    solver = BudgetSolver(space, make_limits(space, budgets, problem.model))
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(count):
        choices = rng.integers(space.valid.sum(axis=1))
        costs = -np.sort(-rng.random(space.valid.shape), axis=1)
        drawn.append(space.assignment(solver.fill(solver.repair(choices, costs), costs)))
    values = problem.validation.mean(drawn, problem.num_shards)
    return drawn[int(np.argmin(values))]


def compare(problem: Problem, seeds: Iterable[int], num_trials: int) -> dict[str, dict[str, list[Choice]]]:
    """Budget → method → what it chose, one a seed."""
    found: dict[str, dict[str, list[Choice]]] = {}
    for name, texts in budget_texts(problem).items():
        budgets = parse_budgets(texts)
        rows: dict[str, list[Choice]] = {method: [] for method in METHODS}
        for seed in seeds:
            problem.validation.asked = 0
            race = Race(problem.validation, problem.num_shards, 0.05)
            result = search_assignment(
                problem.table,
                problem.setup,
                budgets,
                race,
                SearchConfig(num_trials=num_trials, objective="loss"),
                seed=seed,
            )
            work = problem.validation.asked // problem.num_shards
            rows["raysearch"].append(problem.judge(result.best.assignment, work))
            rows["random search"].append(
                problem.judge(random_search(problem, budgets, num_trials, seed), num_trials)
            )
            print(
                name, seed, result.best.source, rows["raysearch"][-1], rows["random search"][-1], flush=True
            )
        rows["HAWQ, exact ILP"].append(problem.judge(hawq_optimum(problem, budgets), 0))
        fits = [
            a
            for w in (2, 3, 4, 8)
            for v in (4, 8)
            if is_feasible(budgets, problem.model, a := problem.uniform(w, v))
        ]
        rows["uniform"].append(min((problem.judge(a, len(fits)) for a in fits), key=lambda c: c.validation))
        rows["greedy by single losses"].append(problem.judge(*greedy(problem, budgets)))
        for method in METHODS[1:4]:
            print(name, method, rows[method][0], flush=True)
        found[name] = rows
    return found


def rows_of(found: Mapping[str, Mapping[str, Sequence[Choice]]]) -> list[str]:
    """One line a budget and method; of several seeds the median and the worst validation loss."""
    lines = []
    for name, rows in found.items():
        for method, choices in rows.items():
            values = [choice.validation for choice in choices]
            middle = sorted(choices, key=lambda choice: choice.validation)[len(choices) // 2]
            spread = f"{statistics.median(values):.4f}" + (f" ({max(values):.4f})" if len(values) > 1 else "")
            work = statistics.median(choice.measured for choice in choices)
            lines.append(
                f"| {name} | {method} | {spread} | {middle.test:.4f} | {middle.accuracy:.2%} | {work:g} |"
            )
    return lines


def verdict(found: Mapping[str, Mapping[str, Sequence[Choice]]]) -> str:
    """How often the worst seed of the search is no worse than the best of each other method."""
    parts = []
    for method in METHODS[1:]:
        wins = sum(
            max(c.validation for c in rows["raysearch"]) <= min(c.validation for c in rows[method])
            for rows in found.values()
        )
        parts.append(f"{method}: {wins} of {len(found)}")
    return "; ".join(parts)


def draw(found: Mapping[str, Mapping[str, Sequence[Choice]]], path: Path) -> None:
    """Validation loss of every method at every budget, each seed a mark."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), dpi=90)
    for number, (method, mark) in enumerate(zip(METHODS, "osD^x", strict=True)):
        points = [
            (place + 0.13 * (number - 2), choice.validation)
            for place, rows in enumerate(found.values())
            for choice in rows[method]
        ]
        axes.plot(*zip(*points, strict=True), mark, markersize=5, label=method)
    axes.set_xticks(range(len(found)), list(found), fontsize=8)
    axes.set(yscale="log", ylabel="cross-entropy on validation images")
    axes.grid(axis="y", which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Measure and write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    options = parser.parse_args()
    torch.set_num_threads(1)
    problem = Problem(SETTINGS)
    whole = problem.uniform(8, 8)
    baseline = problem.judge(whole, 0)
    found = compare(problem, range(options.seeds), options.trials)
    RESULTS.mkdir(exist_ok=True)
    draw(found, RESULTS / "fashion.png")
    page = PAGE.format(
        date=options.date,
        machine=platform.processor() or platform.machine(),
        torch=torch.__version__,
        groups=len(problem.setup.groups),
        trials=options.trials,
        seeds=options.seeds,
        whole=baseline,
        rows="\n".join(rows_of(found)),
        verdict=verdict(found),
    )
    (RESULTS / "fashion.md").write_text(page)


if __name__ == "__main__":
    main()
