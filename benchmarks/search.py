"""The exact solvers: published instances, a large one under three budgets, and many random ones.

One process, one thread, CPU time. Writes benchmarks/results/search.md.

    python -m benchmarks.search [--instances 10000] [--rounds 5]
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import scipy

from benchmarks.problems.hawq_v3 import instances
from benchmarks.problems.random_layers import every_assignment, hardware_layers, layer_chain, random_table
from raysearch.errors import BudgetError
from raysearch.records import BitAssignment, CostModel, is_feasible, parse_budgets
from raysearch.search import BudgetSolver, OptionSpace, make_limits, make_surrogate
from raysearch.search.solvers.quadratic import solve_quadratic

RESULT = Path(__file__).parent / "results" / "search.md"
UNITS = {"size": "B", "activation_memory": "B", "latency": "s"}
WIDTHS = (2, 3, 4, 5, 6, 8)
GAP, SECONDS = 1e-3, 5.0


def published(rounds: int) -> list[str]:
    every = list(instances())
    ours, theirs, worst = [], [], 0.0
    for _ in range(rounds):
        start = time.process_time()
        solutions = [instance.solve() for instance in every]
        middle = time.process_time()
        optima = [instance.solve_by_milp() for instance in every]
        ours.append(middle - start)
        theirs.append(time.process_time() - middle)
        worst = max(worst, *(abs(f.value / o - 1) for f, o in zip(solutions, optima, strict=True)))
    proven = sum(f.gap == 0 for f in solutions)
    pick = next(f.value for f, i in zip(solutions, every, strict=True) if i.name == "resnet50 size .25")
    return [
        "## HAWQ-V3's 18 published integer programmes",
        "",
        (
            f"{proven} of {len(every)} proven optimal, all together in {statistics.median(ours):.3f} s "
            f"(median of {rounds}); scipy's `milp` with a gap of 0 takes {statistics.median(theirs):.3f} s, "
            f"{statistics.median(theirs) / statistics.median(ours):.1f} times as long. The greatest relative "
            f"difference of the optima is {worst:.1e}. `resnet50 size .25`: {pick:.5f}."
        ),
    ]


def large() -> list[str]:
    setup = layer_chain(500, WIDTHS, WIDTHS, 0)
    model, space = CostModel(setup), OptionSpace(setup)
    rng = np.random.default_rng(0)
    costs = rng.lognormal(0, 2, (len(space.rows), 1)) * 4.0**-space.widths
    costs = costs * rng.uniform(0.7, 1.3, costs.shape)
    lines = [
        f"## {len(space.rows)} groups of {len(WIDTHS)} widths",
        "",
        "| budgets | decoded | best found | proven bound | gap | seconds to decode | seconds, all |",
        "|---|---|---|---|---|---|---|",
    ]
    missed = []
    for texts in (
        ["avg_bits<=4.2", "size<=90kB", "act_bits<=4.5"],
        ["avg_bits<=4.2", "act_bits<=4.5", "bops<=30%"],
        ["effective>=1.6"],
    ):
        solver = BudgetSolver(space, make_limits(space, parse_budgets(texts), model))
        start = time.process_time()
        decoded = float(space.take(costs, solver.heuristic(costs)).sum())
        middle = time.process_time()
        solution = solver.exact(costs)
        end = time.process_time()
        lines.append(
            f"| {', '.join(f'`{t}`' for t in texts)} | {decoded:.5f} | {solution.value:.5f} | "
            f"{solution.lower_bound:.5f} | {solution.gap:.1e} | {middle - start:.1f} | {end - middle:.1f} |"
        )
        if solution.gap > GAP or end - middle > SECONDS:
            missed.append(f"`{', '.join(texts)}`")
    target = f"The target, proven within {GAP:.1%} in {SECONDS:g} s, is "
    return [*lines, "", target + (f"MISSED by {' and '.join(missed)}." if missed else "met by all.")]


def random_instances(count: int) -> list[str]:
    broken = refused = not_best = idle = 0
    gaps, milp_gaps = [], []
    rng = np.random.default_rng(0)
    for number in range(count):
        seed = int(rng.integers(10**6))
        if number % 2:
            setup = hardware_layers(int(rng.integers(1, 4)), seed, bool(rng.integers(2)))
        else:
            setup = layer_chain(int(rng.integers(1, 5)), (2, 4, 8), ((8,), (4, 8))[seed % 2], seed)
        model, space = CostModel(setup), OptionSpace(setup)
        budgets = _budgets(rng, model, _witness(rng, setup))
        costs = rng.exponential(size=space.valid.shape) * 4.0**-space.widths
        costs[~space.valid] = 0.0
        try:
            solver = BudgetSolver(space, make_limits(space, budgets, model))
            choices = solver.heuristic(costs)
        except BudgetError:
            refused += 1
            continue
        assignment = space.assignment(choices)
        broken += not is_feasible(budgets, model, assignment) or bool(setup.broken_pairs(assignment.bits))
        idle += _has_useful_move(solver, choices, costs)
        every = solver.feasible_choices(20_000)
        assert every is not None
        best = float(costs[space.rows, every].sum(axis=1).min())
        gaps.append(float(space.take(costs, choices).sum()) / best - 1)
        if number % 10 == 0:
            optimum = solver.exact(costs)
            milp_gaps.append(optimum.value / best - 1)
            not_best += optimum.value > best * (1 + 2e-4) or optimum.lower_bound > best * (1 + 1e-9)
    return [
        f"## {count:,} random instances against brute force",
        "",
        (
            "Up to 7 groups; one to four budgets of any kind that one assignment meets exactly or with "
            "some room; half with shared inputs, forbidden width pairs, kernels slower at fewer bits, and "
            "live tensors."
        ),
        "",
        "| | |",
        "|---|---|",
        f"| budgets or pairs broken | {broken} |",
        f"| feasible instances refused | {refused} |",
        f"| a cheaper option still fitted | {idle} |",
        f"| decoded: optimal | {np.mean(np.array(gaps) <= 1e-9):.1%} |",
        (
            f"| decoded: mean and 99th percentile above the optimum | {np.mean(gaps):.2%}, "
            f"{np.percentile(gaps, 99):.1%} |"
        ),
        (
            f"| `BudgetSolver.exact` (every 10th): worse than its tolerance, or its bound wrong | {not_best} "
            f"of {len(milp_gaps)} |"
        ),
    ]


def quadratic() -> list[str]:
    lines = [
        "## The quadratic surrogate",
        "",
        "| groups | additive optimum's value / best found | gap that is left | seconds |",
        "|---|---|---|---|",
    ]
    for layers in (8, 20, 54):
        setup = layer_chain(layers, (2, 4, 8), (8,), 1)
        space, model = OptionSpace(setup), CostModel(setup)
        surrogate = make_surrogate("response", random_table(setup, 1, 0.5), space)
        solver = BudgetSolver(space, make_limits(space, parse_budgets(["avg_bits<=4"]), model))
        start = time.process_time()
        solution = solve_quadratic(surrogate, solver)
        seconds = time.process_time() - start
        additive = float(surrogate.predict(solver.exact(surrogate.option_costs).choices))
        lines.append(f"| {layers} | {additive / solution.value:.3f} | {solution.gap:.1%} | {seconds:.1f} |")
    return lines


def _witness(rng: np.random.Generator, setup) -> BitAssignment:
    every = [a for a in every_assignment(setup) if not setup.broken_pairs(a.bits)]
    return every[int(rng.integers(len(every)))]


def _budgets(rng: np.random.Generator, model: CostModel, witness: BitAssignment):
    costs, texts = model.costs(witness), []
    for kind in rng.permutation(model.kinds)[: int(rng.integers(1, 5))].tolist():
        room = float(rng.choice([0.0, 0.01, 0.2])) * (model.highest[kind] - model.lowest[kind])
        if kind == "effective":
            texts.append(f"effective>={costs[kind] / (1 + room)!r}")
        else:
            texts.append(f"{kind}<={max(costs[kind] + room, 1e-9)!r}{UNITS.get(kind, '')}")
    return parse_budgets(texts)


def _has_useful_move(solver: BudgetSolver, choices: np.ndarray, costs: np.ndarray) -> bool:
    fits = solver.space.valid.copy()
    for limit in solver.limits:
        fits &= limit.changes(choices) <= limit.capacity - int(limit.use(choices))
    gain = solver.space.take(costs, choices)[:, None] - costs
    return bool((fits & (gain > 0)).any())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    head = [
        "# The exact solvers of the search",
        "",
        (
            f"{datetime.date.today()}, {platform.processor() or platform.machine()}, one thread, numpy "
            f"{np.__version__}, scipy {scipy.__version__}. CPU seconds. Made by `benchmarks/search.py`."
        ),
    ]
    parts = [head, published(args.rounds), large(), quadratic(), random_instances(args.instances)]
    RESULT.write_text("\n\n".join("\n".join(part) for part in parts) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
