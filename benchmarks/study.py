"""The search against brute force on a small trained net, and what one ask costs.

Every assignment of the digits net with 7 free groups of 3 widths is measured once; then searches of at most
100 trials with 5 seeds are compared with the true optimum within each budget. Writes
benchmarks/results/study.md. The float net is trained as by examples/digits/train.py. The measuring takes
most of the time; `--measured FILE` keeps it for the next run.

    python -m benchmarks.study [--seeds 5] [--trials 96] [--measured FILE]
"""

from __future__ import annotations

import argparse
import datetime
import pickle
import platform
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import optuna
import torch

from benchmarks.problems.random_layers import DisturbedForm, layer_chain, random_table
from raysearch.cluster.pool import LocalPool
from raysearch.config import SearchConfig, SensitivityConfig, load_config
from raysearch.evaluation import DataSet
from raysearch.pipeline.inputs import check_inputs
from raysearch.pipeline.stages import make_objective, make_ranges, make_replica, search_shards
from raysearch.records import (
    BitAssignment,
    CostModel,
    QuantizerSetup,
    SensitivityTable,
    is_feasible,
    parse_budgets,
)
from raysearch.search import (
    BudgetSolver,
    KnapsackThompsonSampler,
    OptionSpace,
    Race,
    ShardValues,
    make_limits,
    make_surrogate,
    search_assignment,
)
from raysearch.search.optuna_bridge import quiet_optuna
from raysearch.search.samplers.base import make_distributions
from raysearch.sensitivity import measure_sensitivity

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "study.md"
FREE = 7
BUDGETS = ("avg_bits<=3", "size<=30%", "avg_bits<=4", "avg_bits<=5", "size<=35%")
"""From tight to loose. The least size is 27 % of the float file: header and what is not quantized count."""

WORST, ASK = 1.02, 20.0
"""Targets: found value over the true optimum, and CPU milliseconds of an ask after 1,000 trials."""

SETTINGS = ["placement.weight_bit_widths=[2,4,8]", "search.num_samples=256", "search.shard_size=32"]


class Recorded:
    """Values of every assignment, measured once; counts the forwards that a search asks for."""

    def __init__(self, values: Mapping[str, Mapping[int, ShardValues]]) -> None:
        self.values, self.forwards = values, 0

    def __call__(
        self, assignments: Mapping[int, BitAssignment], shards: Sequence[int]
    ) -> dict[int, dict[int, ShardValues]]:
        """As `MeasuredObjective`."""
        self.forwards += len(assignments) * len(shards)
        return {n: {s: self.values[a.digest()][s] for s in shards} for n, a in assignments.items()}

    def mean(self, assignment: BitAssignment) -> float:
        """Mean over all samples."""
        parts = self.values[assignment.digest()]
        return float(np.concatenate([parts[s][0] for s in sorted(parts)]).mean())


def small_problem() -> tuple[QuantizerSetup, SensitivityTable, Recorded, int]:
    """The digits net with its seven largest weights free, its sensitivity and all its measurements."""
    sys.path.insert(0, str(ROOT / "examples" / "digits"))
    from task import make_task

    task = make_task()
    config = load_config(assignments=SETTINGS)
    placed = check_inputs(task, config, ["avg_bits<=8"]).setup
    weights = sorted(placed.of_kind("weight").values(), key=lambda point: -point.num_elements)
    pins = {point.id: 8 for point in weights[FREE:]}
    config = load_config(assignments=SETTINGS, overrides={"placement": {"pins": pins}})
    inputs = check_inputs(task, config, ["avg_bits<=8"])
    shards, per_sample = search_shards(inputs)
    pool = LocalPool(make_replica(inputs, shards).place())
    ranges = make_ranges(inputs, pool)
    table = measure_sensitivity(
        inputs.setup,
        ranges,
        lambda part: pool,
        {DataSet.CALIBRATION: len(inputs.samples.calibration)},
        SensitivityConfig(),
    )
    measure = make_objective(inputs, ranges, pool, per_sample)
    groups = inputs.setup.groups.values()
    every = [
        BitAssignment(dict(zip(inputs.setup.groups, bits, strict=True)))
        for bits in product(*(group.bit_widths for group in groups))
    ]
    got = measure(dict(enumerate(every)), range(len(shards)))
    return inputs.setup, table, Recorded({a.digest(): got[i] for i, a in enumerate(every)}), len(shards)


def kept_problem(file: Path | None) -> tuple[QuantizerSetup, SensitivityTable, Recorded, int]:
    """`small_problem`, from the file where there is one, which is written otherwise."""
    if file is not None and file.exists():
        setup, table, values, num_shards = pickle.loads(file.read_bytes())
        return setup, table, Recorded(values), num_shards
    setup, table, recorded, num_shards = small_problem()
    if file is not None:
        file.write_bytes(pickle.dumps((setup, table, recorded.values, num_shards)))
    return setup, table, recorded, num_shards


def compare(
    problem: tuple[QuantizerSetup, SensitivityTable, Recorded, int], seeds: Iterable[int], num_trials: int
) -> tuple[list[str], float]:
    """One line a budget and sampler: found over true optimum, work, and warm starts; the worst of `auto`."""
    setup, table, recorded, num_shards = problem
    worst = 0.0
    model = CostModel(setup)
    names = list(setup.groups)
    widths = [setup.groups[name].bit_widths for name in names]
    every = [BitAssignment(dict(zip(names, bits, strict=True))) for bits in product(*widths)]
    lines = []
    for text in BUDGETS:
        budgets = parse_budgets([text])
        feasible = sorted(recorded.mean(a) for a in every if is_feasible(budgets, model, a))
        for sampler, error in (("auto", 0.05), ("auto", 0.0), ("tpe", 0.0), ("random", 0.0)):
            ratios, starts, work, num_distinct = [], [], [], []
            for seed in seeds:
                recorded.forwards = 0
                race = Race(recorded, num_shards, error)
                result = search_assignment(
                    table,
                    setup,
                    budgets,
                    race,
                    SearchConfig(num_trials=num_trials, sampler=sampler),
                    seed=seed,
                )
                ratios.append(result.best.value / feasible[0])
                own = {"thompson", "tpe", "random", "finalist"}
                starts.append(min(v for k, v in result.reasons.items() if k not in own) / feasible[0])
                distinct = len({t.assignment.digest() for t in result.trials})
                num_distinct.append(distinct)
                work.append(recorded.forwards / (distinct * num_shards))
            name = f"{sampler}, racing" if error else sampler
            worst = max(worst, *ratios) if sampler == "auto" else worst
            cells = (
                text,
                len(feasible),
                name,
                f"{max(starts):.4f}",
                f"{statistics.median(ratios):.4f}",
                f"{max(ratios):.4f}",
                max(num_distinct),
                f"{statistics.median(work):.0%}",
            )
            lines.append(f"| {' | '.join(map(str, cells))} |")
            print(lines[-1], flush=True)
    return lines, worst


def overhead(counts: Sequence[int], asks: int) -> tuple[list[str], float]:
    """CPU milliseconds of one ask of the knapsack-Thompson sampler, 55 groups × 4 widths; the worst one."""
    setup = layer_chain(28, (2, 3, 4, 8), (3, 4, 6, 8), seed=0)
    table = random_table(setup)
    space, measure = OptionSpace(setup), DisturbedForm(table, 0.4)
    solver = BudgetSolver(space, make_limits(space, parse_budgets(["avg_bits<=4"]), CostModel(setup)))
    lines, worst = [], 0.0
    for surrogate in ("response", "hawq"):
        for count in counts:
            scores = make_surrogate(surrogate, table, space)
            sampler = KnapsackThompsonSampler(scores, solver, seed=0)
            distributions = make_distributions(space)
            rng = np.random.default_rng(0)
            times = []
            with quiet_optuna():
                study = optuna.create_study(sampler=sampler)
                for _ in range(count):
                    drawn = rng.integers(space.valid.sum(axis=1))
                    assignment = space.assignment(solver.repair(drawn, scores.option_costs))
                    study.add_trial(
                        optuna.trial.create_trial(
                            value=measure.value(assignment),
                            params=dict(assignment.bits),
                            distributions=distributions,
                        )
                    )
                for _ in range(asks):
                    start = time.process_time()
                    batch = [study.ask(distributions) for _ in range(8)]
                    times.append((time.process_time() - start) / 8 * 1e3)
                    for trial in batch:
                        bits = {g: int(trial.params[g]) for g in space.groups}
                        study.tell(trial, measure.value(BitAssignment(bits)))
            worst = max(worst, statistics.median(times))
            lines.append(f"| {surrogate} | {count} | {statistics.median(times):.1f} | {max(times):.1f} |")
            print(lines[-1], flush=True)
    return lines, worst


def verdict(value: float, target: float, unit: str) -> str:
    """Whether a target is met, in words."""
    return f"The target of {target:g}{unit} is {'met' if value <= target else f'MISSED: {value:.4g}{unit}'}."


def main() -> None:
    """Measure and write both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=96)
    parser.add_argument("--asks", type=int, default=5, help="batches of 8 asks to time")
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    parser.add_argument("--measured", type=Path, help="where the measurements of all assignments are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    asks, slowest = overhead((0, 200, 1000), options.asks)
    quality, worst = compare(kept_problem(options.measured), range(options.seeds), options.trials)
    lines = [
        "# The search",
        "",
        f"{options.date}, {platform.processor() or platform.machine()}, one thread,",
        f"optuna {optuna.__version__}. Made by `benchmarks/study.py`.",
        "",
        "## Against brute force",
        "",
        f"The digits net, its {FREE} largest weights free in 2, 4, 8 bits, the others at 8: all {3**FREE}",
        "assignments measured on 256 validation samples (KL divergence to the float net). Found value over",
        f"the true optimum within the budget, {options.seeds} seeds, {options.trials} trials. *Warm start*",
        "is the best of the assignments that need no sampler, all shares of the budget included. *Work* is",
        "forwards over those of measuring every trial whole.",
        "",
        verdict(worst, WORST, " times the optimum"),
        "Where the warm start is the optimum already, the row says nothing of the sampler.",
        "",
        "| budget | feasible | sampler | warm start | median | worst | distinct trials | work |",
        "|---|---|---|---|---|---|---|---|",
        *quality,
        "",
        "## One ask",
        "",
        "Knapsack-Thompson, 55 groups × 4 widths, CPU milliseconds an ask after so many finished trials:",
        f"median and greatest of {options.asks} batches of 8. {verdict(slowest, ASK, ' ms')}",
        "",
        "| surrogate | trials | median | greatest |",
        "|---|---|---|---|",
        *asks,
    ]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
