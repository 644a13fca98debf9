"""Weights alone at 2, 3, 4 or 8 bits on the ResNet-20 of examples/fashion_mnist, by how they are rounded.

At each of five average widths the search and the usual ways to choose widths, all with GPTQ rounding and all
with nearest rounding; nothing is trained. Writes benchmarks/results/fashion_weights.md. Needs the data of
examples/fashion_mnist.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fashion import FloatArray, Problem, hawq_optimum, random_search
from benchmarks.responses import processor
from raysearch.config import SearchConfig
from raysearch.controller import create_controller
from raysearch.hooks import put_floats
from raysearch.pipeline.stages import refine_winner
from raysearch.records import BitAssignment, Budget, is_feasible, parse_budgets
from raysearch.search import OptionSpace, Race, make_limits, make_surrogate, search_assignment
from raysearch.search.solvers import BudgetSolver, solve_quadratic

RESULT = Path(__file__).parent / "results" / "fashion_weights.md"
WIDTHS = (2, 3, 4, 8)
BUDGETS = ("2.25", "2.5", "3.0", "3.5", "4.0")
SETTINGS = (
    f"placement.weight_bit_widths={list(WIDTHS)}",
    "placement.activation_bit_widths=[]",
    "calibration.num_samples=512",
    "search.num_samples=5000",
    "search.shard_size=250",
)
ROUNDINGS = ("gptq", "nearest")
OURS = "ours"
REFINED = "ours, refined"
ERRORS = 2
"""Standard errors within which two test divergences are called level."""
PAGE = """\
# Weights alone: the search and the usual ways, by rounding

{date}, {machine}, torch {torch}, one thread. Made by
`python -m benchmarks.fashion_weights` (once `examples/fashion_mnist/train.py` has run).

ResNet-20 on Fashion-MNIST (examples/fashion_mnist), 22 weights at 2, 3, 4 or 8 bits, activations in
float, nothing trained. Ranges, second moments and sensitivity are from 512 training images, taken once a
rounding. Each cell: KL to the float net × 1000 on the 10,000 test images, which no method saw, and accuracy;
the float net has {accuracy:.4f}. In bold the lowest of a row.

- uniform: the largest single width that fits;
- HAWQ exact: the least Σ trace · ‖Q(W) − W‖² within the budget, Q to nearest as published, so that its widths
  are the same in both tables; nothing is measured;
- responses: the best that the quadratic solver finds for the form of all measured responses;
- random: the best of as many assignments as ours tried, by their KL on 5,000 validation images, all of them
  measured on every image; what is too wide or left to spend is settled at random too;
- ours: the search of a run, {trials} trials on the same validation images; those that cannot win are stopped;
- ours, refined: that choice as a run deploys it, `rounding.refine` at its default: layers rounded anew one
  after another, scales, norms and biases tuned, by the 512 calibration images; what is best on the
  validation images is kept. No labels, no training data.

{tables}

## Is ours the lowest?
Ours, not refined, minus the lowest of the other four on these test images (picked afterwards, which
favours it), KL × 1000, ± the standard error of the difference over images.

| avg bits | {names} |
|---|{rule}
{margins}

{verdict}

## What is not shown
- One training of one net, and one seed of the search and of random search: no spread over seeds.
- Earlier figures of this task (GPTQ, responses: 6.82, 3.97, 1.38, 0.60 and 0.26 from the tightest
  budget to the widest; uniform 2 bits: 61.02) are of another training of the same net, of float accuracy
  0.9264, and do not compare with these one by one.
- By 1,000 validation images instead of 5,000 the search chose at 2.25 bits a trial of 7.23 × 10⁻³ on the test
  images, for a lead of .006 ± .3 over one of 6.75: too few samples for choices so much alike.
- Activations are float, so no budget in BOPs; nothing is said about time.
"""


@dataclass(frozen=True)
class Cell:
    """What a method's choice does to the test images.

    Attributes:
        divergences: KL to the float net, one a test image.
        accuracy: on the same images.
    """

    divergences: FloatArray
    accuracy: float

    @property
    def mean(self) -> float:
        """Mean KL × 1000."""
        return 1000 * float(self.divergences.mean())

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.accuracy:.4f})"


Row = Mapping[str, Cell]
"""Method → what its choice does."""


def judge(problem: Problem, assignment: BitAssignment) -> Cell:
    """Measure a choice on the test images."""
    divergences = problem.test.values(assignment, problem.num_test)
    accuracy = problem.accuracy.mean([assignment], problem.num_test)[0]
    return Cell(divergences, accuracy)


def float_accuracy() -> float:
    """Of the float net on the test images."""
    # The example's folder is on the path since the first `Problem`.
    from fashion_mnist import load_data
    from train import float_net

    images, labels = load_data()[2].tensors
    with torch.no_grad():
        outputs = float_net()(images)
    return float((outputs.argmax(1) == labels).double().mean())


def largest_uniform(problem: Problem, budgets: Sequence[Budget]) -> BitAssignment:
    """All weights at the largest width that fits."""
    uniforms = [BitAssignment.uniform(problem.setup, width) for width in WIDTHS]
    return [uniform for uniform in uniforms if is_feasible(budgets, problem.model, uniform)][-1]


def response_optimum(problem: Problem, budgets: Sequence[Budget]) -> BitAssignment:
    """The best assignment found of the measured responses' quadratic form; nothing more is measured."""
    space = OptionSpace(problem.setup)
    solver = BudgetSolver(space, make_limits(space, budgets, problem.model))
    surrogate = make_surrogate("response", problem.table, space)
    return space.assignment(solve_quadratic(surrogate, solver).choices)


def refined(problem: Problem, assignment: BitAssignment) -> Cell:
    """The choice as a run deploys it: refined by the calibration images, judged on the test images."""
    record = refine_winner(
        problem.inputs, problem.ranges, assignment, lambda part: problem.pool, problem.num_shards
    )
    print(record.describe(), flush=True)
    reference = copy.deepcopy(problem.inputs.task.model).eval()
    model = copy.deepcopy(reference)
    put_floats(model, record.best.floats)
    controller = create_controller(model, problem.setup, record.put_into(problem.ranges), assignment)
    stripped = controller.strip_model()
    divergences, hits = [], 0.0
    with torch.no_grad():
        for images, labels in problem.test_batches:
            outputs = stripped(images)
            divergences.append(problem.inputs.divergence.per_sample(outputs, reference(images)).numpy())
            hits += float((outputs.argmax(1) == labels).double().sum())
    values = np.concatenate(divergences)
    return Cell(values, hits / len(values))


def choose(problem: Problem, budgets: Sequence[Budget], num_trials: int) -> dict[str, BitAssignment]:
    """Method → its choice."""
    race = Race(problem.validation, problem.num_shards)
    settings = SearchConfig(num_trials=num_trials)
    search = search_assignment(problem.table, problem.setup, budgets, race, settings)
    return {
        "uniform": largest_uniform(problem, budgets),
        "HAWQ exact": hawq_optimum(problem, budgets),
        "random": random_search(problem, budgets, len(search.trials), seed=0),
        "responses": response_optimum(problem, budgets),
        OURS: search.best.assignment,
    }


def compare(problem: Problem, text: str, num_trials: int) -> Row:
    """One row: every method's choice within a budget, and ours refined where there is anything to refine."""
    choices = choose(problem, parse_budgets([f"avg_bits<={text}"]), num_trials)
    row = {method: judge(problem, assignment) for method, assignment in choices.items()}
    if problem.inputs.config.rounding.method != "nearest":
        row[REFINED] = refined(problem, choices[OURS])
    print(text, {method: str(cell) for method, cell in row.items()}, flush=True)
    return row


def save_row(path: Path, row: Row) -> None:
    """Keep a row, so that the table can be made in pieces."""
    accuracies = {method: cell.accuracy for method, cell in row.items()}
    arrays: dict[str, Any] = {str(number): cell.divergences for number, cell in enumerate(row.values())}
    np.savez(path, accuracies=json.dumps(accuracies), **arrays)


def load_row(path: Path) -> Row:
    """Read what `save_row` kept."""
    arrays = np.load(path)
    accuracies = json.loads(str(arrays["accuracies"]))
    return {
        method: Cell(arrays[str(number)], accuracy)
        for number, (method, accuracy) in enumerate(accuracies.items())
    }


def table_of(rows: Sequence[Row]) -> str:
    """A line a budget, a column a method, the lowest in bold."""
    methods = list(rows[0])
    lines = [f"| avg bits | {' | '.join(methods)} |", "|---|" + "---|" * len(methods)]
    for text, row in zip(BUDGETS, rows, strict=True):
        lowest = min(cell.mean for cell in row.values())
        cells = [f"**{cell}**" if cell.mean == lowest else str(cell) for cell in row.values()]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    return "\n".join(lines)


def margin(row: Row) -> tuple[float, float, str]:
    """Ours minus the lowest other, × 1000, its standard error over images, and who that is."""
    others = [method for method in row if method not in (OURS, REFINED)]
    rival = min(others, key=lambda method: row[method].mean)
    differences = 1000 * (row[OURS].divergences - row[rival].divergences)
    return float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(len(differences))), rival


def margin_lines(tables: Mapping[str, Sequence[Row]]) -> list[str]:
    """A line a budget, a column a rounding."""
    lines = []
    for number, text in enumerate(BUDGETS):
        cells = []
        for rows in tables.values():
            difference, error, rival = margin(rows[number])
            cells.append(f"{difference:+.3f} ± {error:.3f} ({rival})")
        lines.append(f"| {text} | {' | '.join(cells)} |")
    return lines


def verdict(tables: Mapping[str, Sequence[Row]]) -> str:
    """How often ours is lowest, level or higher, a sentence a rounding."""
    sentences = []
    for name, rows in tables.items():
        margins = [margin(row) for row in rows]
        lower = sum(difference < -ERRORS * error for difference, error, _ in margins)
        higher = sum(difference > ERRORS * error for difference, error, _ in margins)
        level = len(rows) - lower - higher
        sentences.append(
            f"With {name} rounding ours is lower at {lower} of {len(rows)} budgets by more than {ERRORS} "
            f"standard errors, higher at {higher}, and level at {level}."
        )
    return "\n".join(sentences)


def main() -> None:
    """Measure what is not in the folder of pieces yet; write the page once all is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--pieces", type=Path, default=Path("build/fashion_weights"), help="folder of rows")
    parser.add_argument("--minutes", type=float, default=60, help="begin no further row after so many")
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.pieces.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    for rounding in ROUNDINGS:
        problem: Problem | None = None
        for text in BUDGETS:
            path = options.pieces / f"{rounding}-{text}.npz"
            if path.exists() or time.monotonic() - start > 60 * options.minutes:
                continue
            problem = problem or Problem([*SETTINGS, f"rounding.method={rounding}"])
            save_row(path, compare(problem, text, options.trials))
    write_page(options.pieces, options.date, options.trials)


def write_page(pieces: Path, date: str, num_trials: int) -> None:
    """Write the page, if all its rows are there.

    Args:
        pieces: the folder of rows.
        date: of the measurement.
        num_trials: of every search.
    """
    paths = {rounding: [pieces / f"{rounding}-{text}.npz" for text in BUDGETS] for rounding in ROUNDINGS}
    missing = [path.name for row in paths.values() for path in row if not path.exists()]
    if missing:
        print(f"not measured yet: {', '.join(missing)}; run again")
        return
    tables = {rounding: [load_row(path) for path in row] for rounding, row in paths.items()}
    sections = [f"## {name} rounding\n{table_of(rows)}" for name, rows in tables.items()]
    text = PAGE.format(
        date=date,
        machine=processor(),
        torch=torch.__version__,
        accuracy=float_accuracy(),
        trials=num_trials,
        tables="\n\n".join(sections),
        names=" | ".join(tables),
        rule="---|" * len(tables),
        margins="\n".join(margin_lines(tables)),
        verdict=verdict(tables),
    )
    RESULT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
