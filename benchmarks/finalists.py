"""Do a few steps of training tell which assignment is best after all of them?

A problem of `benchmarks.problems.training_cases` is searched, and its best assignments are trained from their
rounded codes, shortly and in full, as `search.finalists_trained` does. Each training is a piece, a JSON file
that is written when it is done, and one that is cut goes on from its checkpoint. Writes
benchmarks/results/finalists.md from the pieces that are there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import torch

from benchmarks.problems.training_cases import PROBLEMS
from benchmarks.responses import processor
from benchmarks.training import Trained, code_state
from raysearch.artifacts import Storage, resolve_run
from raysearch.cluster.pool import LocalPool
from raysearch.config import load_config
from raysearch.pipeline.finalists import best_trials
from raysearch.pipeline.inputs import check_inputs
from raysearch.pipeline.stages import adapted_norms, load_ranges, recipe_from
from raysearch.training import Start, train_finalists

RESULT = Path(__file__).parent / "results" / "finalists.md"
PAGE = """\
# Does a short training tell which assignment is best after a full one?

{date}, {machine}, torch {torch}, one thread. Made by `python -m benchmarks.finalists`.
The best assignments of a search, as `search.finalists_trained` takes them, each trained from its rounded
codes with a few steps and with all of a full training; the learning rate falls to 0 over either. What counts
is the least validation loss, the untrained model's among them. Means over seeds of order and dropout, ± their
standard error. Agreement of two orders is Kendall's tau: 1 is the same, 0 what chance gives, -1 the reverse.
What a choice costs is the loss after the full training of what was chosen, less that of the best of them, in
1/1000 of a nat; the last column is the mean over all of them less the best, what a choice by lot costs.
{read}

{tables}
"""
READ = """
On digits at 2.25 bits a second full training with another seed agrees by 0.37: so much of the order is the
assignments' own, the rest is the seed's chance. One epoch (19 steps) saves two thirds of what that one saves
over a choice by lot, three epochs and the search's own value nothing that can be told. At 3 bits, and on
Fashion-MNIST, a second full training agrees no better than chance: there is nothing to choose. The order did
change in the run with Fashion-MNIST (trials 0, 7, 4, 16 before, 7, 4, 16, 0 after 200 steps), and a full
training with the same seed gave 4, 0, 7, 16, with another one 7, 4, 16, 0."""
HEAD = """\
| budget | chosen by | seeds | agreement with full training | the best of all is chosen | cost | cost by lot |
|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Plan:
    """How a problem's finalists are trained.

    Attributes:
        count: how many.
        short: steps of the short trainings.
        full: steps of the full one.
        seeds: how often.
    """

    count: int
    short: tuple[int, ...]
    full: int
    seeds: int


PLANS = {
    "digits": Plan(8, (19, 57), 190, 5),
    "fashion": Plan(4, (200,), 430, 2),
}


class Compared:
    """The trainings of a problem's finalists.

    Args:
        name: of the problem.
        folder: of runs and pieces.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.trained = Trained(name, folder)
        self.plan = PLANS[name]
        self._folder = folder / f"{name}-finalists"

    def path(self, budget: str, steps: int, trial: int, seed: int) -> Path:
        """Of a piece.

        Args:
            budget: of the search.
            steps: of the training.
            trial: of the search.
            seed: of the training.
        """
        return self._folder / f"{budget.replace('<=', '_')}_{steps}_{trial}_{seed}.json"

    def train(self, budget: str, steps: int, seed: int, is_over: float) -> None:
        """Train a budget's finalists once, so far as there is time.

        Args:
            budget: of the search.
            steps: of each training.
            seed: of each training.
            is_over: the time after which none begins.
        """
        if time.monotonic() > is_over:
            return
        problem = self.trained.problem
        run = self.trained.search(budget)
        store = resolve_run(run.uri)
        trials = best_trials(run.search(), self.plan.count)
        missing = [trial for trial in trials if not self.path(budget, steps, trial.number, seed).exists()]
        if not missing:
            return
        inputs = check_inputs(self.trained.task, load_config(overrides=problem.config), [budget])
        ranges = load_ranges(store)
        settings = inputs.config.training.shortened(0, steps)
        settings = settings.model_copy(update={"checkpoint_minutes": 1.0})
        recipe = recipe_from(inputs, ranges, trials[0].assignment, {})
        if seed:
            recipe = replace(recipe, seed=seed)
        recipe = replace(recipe, settings=settings)
        pool = LocalPool(SimpleNamespace(device="cpu"))
        checkpoints = Storage(self._folder / "checkpoints" / f"{budget}-{seed}")
        for trial in missing:
            if time.monotonic() > is_over:
                return
            start = Start(trial.assignment, adapted_norms(inputs, ranges, trial.assignment))
            result = train_finalists(recipe, {trial.number: start}, pool, checkpoints)[trial.number]
            losses = [entry.metrics[recipe.monitor] for entry in result.history]
            piece = {"value": trial.value, "losses": losses, "commit": code_state()}
            path = self.path(budget, steps, trial.number, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(piece))
            print(f"{self.trained.name}, {budget}, {steps}, {trial.number}, {seed}: {losses}", flush=True)

    def losses(self, budget: str, steps: int, seed: int) -> dict[int, float]:
        """Trial → its least loss, of the trainings that are there; of 0 steps the value of the search.

        Args:
            budget: of the search.
            steps: of the training.
            seed: of the training.
        """
        losses: dict[int, float] = {}
        for path in self._folder.glob(f"{budget.replace('<=', '_')}_{steps or self.plan.full}_*_{seed}.json"):
            piece = json.loads(path.read_text())
            trial = int(path.stem.split("_")[-2])
            losses[trial] = min(piece["losses"]) if steps else piece["value"]
        return losses

    def rows(self, budget: str) -> list[str]:
        """A line of the table for each way to choose."""
        rows: list[str] = []
        for steps in (0, *self.plan.short):
            choices: list[Choice] = []
            for seed in range(self.plan.seeds):
                early, full = (self.losses(budget, number, seed) for number in (steps, self.plan.full))
                if len(full) > 1 and early.keys() == full.keys():
                    choices.append(Choice(early, full))
            if choices:
                rows.append(_row(budget, f"{steps} steps" if steps else "the search, untrained", choices))
        again = self.again(budget)
        if again:
            rows.append(_row(budget, "a full training with another seed", again))
        return rows

    def again(self, budget: str) -> list[Choice]:
        """Full trainings beside those of the next seed: what no choice before the training can do better."""
        seeds = range(self.plan.seeds)
        every = [self.losses(budget, self.plan.full, seed) for seed in seeds]
        pairs = [(every[seed], every[seed - 1]) for seed in seeds]
        return [
            Choice(one, other)
            for one, other in pairs
            if one and one is not other and one.keys() == other.keys()
        ]

    def table(self) -> str:
        """The problem's part of the page; "" where nothing was trained."""
        rows = [row for budget in self.trained.problem.budgets for row in self.rows(budget)]
        if not rows:
            return ""
        plan = self.plan
        title = f"## {self.trained.problem.title.partition(',')[0]}: {plan.count} finalists"
        return "\n".join([title, "", f"A full training has {plan.full} steps.", "", HEAD, *rows])


@dataclass(frozen=True)
class Choice:
    """What was known early, and what came of it.

    Attributes:
        early: trial → what it is chosen by; less is better.
        full: trial → loss after the full training.
    """

    early: dict[int, float]
    full: dict[int, float]

    @property
    def agreement(self) -> float:
        """Kendall's tau of the two orders."""
        signs: list[float] = []
        for one, other in combinations(sorted(self.full), 2):
            product = (self.early[one] - self.early[other]) * (self.full[one] - self.full[other])
            signs.append((product > 0) - (product < 0))
        return statistics.fmean(signs)

    @property
    def cost(self) -> float:
        """Loss after the full training of what is chosen, less that of the best."""
        return self.full[min(self.early, key=self.early.__getitem__)] - min(self.full.values())

    @property
    def cost_by_lot(self) -> float:
        """The same of the mean."""
        return statistics.fmean(self.full.values()) - min(self.full.values())


def _row(budget: str, name: str, choices: list[Choice]) -> str:
    """A line of the table.

    Args:
        budget: of the search.
        name: of the way to choose.
        choices: one a seed.
    """
    best = sum(choice.cost == 0 for choice in choices)
    cells = [
        budget,
        name,
        str(len(choices)),
        _mean([choice.agreement for choice in choices], 2),
        f"{best} of {len(choices)}",
        _mean([1000 * choice.cost for choice in choices], 1),
        _mean([1000 * choice.cost_by_lot for choice in choices], 1),
    ]
    return f"| {' | '.join(cells)} |"


def _mean(values: list[float], digits: int) -> str:
    text = f"{statistics.fmean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}"
    return text


def main() -> None:
    """Train what is missing, for some minutes, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problems", nargs="*", default=list(PLANS))
    parser.add_argument("--budgets", nargs="*", help="some of a problem's; default: all of them")
    parser.add_argument("--pieces", type=Path, default=Path("training-pieces"))
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no further training begins")
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    options = parser.parse_args()
    torch.set_num_threads(1)
    is_over = time.monotonic() + 60 * options.minutes
    for name in options.problems:
        compared = Compared(name, options.pieces)
        plan = compared.plan
        for seed in range(plan.seeds):
            for budget in options.budgets or PROBLEMS[name].budgets:
                for steps in (plan.full, *plan.short):
                    compared.train(budget, steps, seed, is_over)
    tables = [Compared(name, options.pieces).table() for name in PLANS]
    page = PAGE.format(
        date=options.date,
        machine=processor(),
        torch=torch.__version__,
        read=READ,
        tables="\n\n".join(filter(None, tables)),
    )
    RESULT.write_text(page)


if __name__ == "__main__":
    main()
