"""Ways to train a quantized net, each beside the default: objectives, rates of scales, starting points.

A problem is searched once a budget, without training; then its winner is trained by every recipe and seed.
Each training is a piece, a JSON file that is written when it is done, so a run that was cut goes on. Writes
benchmarks/results/training.md from the pieces that are there. Fashion-MNIST needs the data of
examples/fashion_mnist.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import raysearch
from benchmarks.problems.training_cases import PROBLEMS, ROOT
from benchmarks.responses import processor
from raysearch.artifacts import Storage, codecs, resolve_run
from raysearch.config import TrainingConfig, load_config
from raysearch.pipeline.inputs import check_inputs
from raysearch.pipeline.stages import judge, load_ranges, make_recipe, strip_checkpoint
from raysearch.records import BitAssignment
from raysearch.training import fine_tune

RESULT = ROOT / "benchmarks" / "results" / "training.md"
DEFAULT = "default"
PAGE = """\
# Recipes of training, each beside the default

{date}, {machine}, torch {torch}, one thread. Made by `python -m benchmarks.training`.
The widths are a search's, the same for every recipe. The default of a column is what a run does: the task's
loss (of a task without one: distillation), scales at 0.01 of their size, from the refined model. Each recipe
changes what its name says. Cells: the mean over seeds, ± the standard deviation over seeds, and in brackets
the mean difference to the default seed by seed ± its standard error, and how many seeds there are. The state
that is judged is the one with the best validation, as a run keeps it, the untrained one among them.

A recipe is to become the default where its mean difference is better by more than two standard errors at each
budget. Where n is 1 there is no standard error, and nothing follows. Up to 2026-11-28 none had met that on
digits or Fashion-MNIST (a tenth of all rates there gains accuracy, and its loss is higher). On the language
model scales that stay do, by 0.06 of 0.77: its table of results (language_models.md) was measured with
scales that learn at 0.0001, as its example has them.

NNCF 2.18 is its own training at its nearest configuration (`python -m benchmarks.nncf_qat`): its legacy API,
symmetric weights with a scale a channel, activations of 8 bits, the same data, batches, epochs and optimizer.

{tables}
"""


@dataclass(frozen=True)
class Way:
    """How a winner is trained.

    Attributes:
        settings: of `training`, that differ from the problem's.
        start: "refined", "rounded" or "nearest".
        uniform: the scheme of a uniform assignment in place of the winner.
        workers: Ray Train workers that share batches of 64; 0: this process alone.
        rates: what both learning rates are multiplied with.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    start: str = "refined"
    uniform: int | str | None = None
    workers: int = 0
    rates: float = 1.0


WAYS = {
    DEFAULT: Way(),
    "distillation of logits": Way({"objective": "distill"}),
    "loss and distillation": Way({"objective": "mixed"}),
    "features of blocks": Way({"feature_weight": 1.0}),
    "all rates × 0.3": Way(rates=0.3),
    "all rates × 0.1": Way(rates=0.1),
    "all rates × 0.03": Way(rates=0.03),
    "distillation, all rates × 0.1": Way({"objective": "distill"}, rates=0.1),
    "loss and distillation, all rates × 0.1": Way({"objective": "mixed"}, rates=0.1),
    "scales stay": Way({"scale_learning_rate": 0.0}),
    "scales at 0.001": Way({"scale_learning_rate": 1e-3}),
    "scales at 0.03": Way({"scale_learning_rate": 3e-2}),
    "scales freeze at 3/4": Way({"scale_freeze_after": 0.75}),
    "dampening 0.1": Way({"dampening": 0.1}),
    "dampening 0.5": Way({"dampening": 0.5}),
    "oscillations freeze at 0.01": Way({"oscillation_threshold": 0.01}),
    "statistics taken anew": Way({"batch_norm_samples": 1000}),
    "statistics freeze at 3/4": Way({"batch_norm_freeze_after": 0.75}),
    "activations from 1/4 on": Way({"activations_after": 0.25}),
    "from rounded (GPTQ)": Way(start="rounded"),
    "from nearest": Way(start="nearest"),
}
"""Name → recipe."""
SHARED = {"global_batch_size": 64, "batch_size": 32}
WORKERS = {
    "one worker": Way({**SHARED, "num_workers": 1}, workers=1),
    "two workers": Way({**SHARED, "num_workers": 2}, workers=2),
}
"""Both with two batches a step; BatchNorm sees 32 samples at once in either."""
PEERS = {"fashion": ("NNCF 2.18, uniform 2", "NNCF 2.18, uniform 3")}
"""Problem → rows whose pieces `benchmarks.nncf_qat` makes, at the first budget."""


def code_state() -> str:
    """The last commit that changed the package, with a mark where the package is not as committed."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout

    changed = git("status", "--porcelain", "--", "raysearch").strip()
    commit = git("log", "-1", "--format=%h", "--", "raysearch").strip()
    return f"{commit} with changes" if changed else commit


class Trained:
    """Winners of one problem's budgets, and their trainings, each in a file.

    Args:
        name: of the problem.
        folder: of runs and pieces.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.problem = PROBLEMS[name]
        self._folder = folder
        self._task: raysearch.Task | None = None

    @property
    def task(self) -> raysearch.Task:
        """Made when first needed."""
        self._task = self._task or self.problem.task()
        return self._task

    def search(self, budget: str) -> raysearch.SavedRun:
        """The run of a budget, without training; what is there goes on."""
        run_id = f"{self.name}-{budget.rpartition('=')[2]}"
        storage = self._folder / "runs"
        store = storage / run_id
        if not (store / "result.json").exists():
            config = {**self.problem.config, "training": {"epochs": 0}, "export": {"targets": ["packed"]}}
            resume = (store / "run.json").exists()
            raysearch.run(self.task, budget, storage, config=config, run_id=run_id, resume=resume, workers=0)
        return raysearch.load_run(run_id, storage)

    def path(self, budget: str, way: str, seed: int) -> Path:
        """Of a piece."""
        name = f"{budget} {way}".replace("/", "-").replace(" ", "_").replace("<=", "_")
        return self._folder / self.name / f"{name}_{seed}.json"

    def train(self, budget: str, name: str, way: Way, seed: int) -> None:
        """Train a budget's winner once, and write what came of it.

        Args:
            budget: whose winner it is.
            name: of the recipe.
            way: the recipe.
            seed: of order, dropout and the like.
        """
        path = self.path(budget, name, seed)
        if path.exists():
            return
        run = self.search(budget)
        store = resolve_run(run.uri)
        own = self.problem.config["training"]
        changed = {**own, **way.settings}
        if way.rates != 1:
            for rate in ("learning_rate", "scale_learning_rate"):
                changed[rate] = way.rates * own.get(rate, TrainingConfig.model_fields[rate].default)
        config = load_config(overrides={**self.problem.config, "training": changed})
        inputs = check_inputs(self.task, config, [budget])
        assignment = run.search().best.assignment
        if way.uniform is not None:
            assignment = BitAssignment.uniform(inputs.setup, way.uniform)
        is_refined = way.start == "refined" and way.uniform is None and store.has(codecs.REFINEMENT)
        refinement = store.load(codecs.REFINEMENT) if is_refined else None
        ranges = store.load(codecs.RANGES) if way.start == "nearest" else load_ranges(store)
        recipe = replace(make_recipe(inputs, ranges, assignment, refinement), seed=seed)
        saved: dict[str, bytes] = {}
        start = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            storage = Storage(folder) if way.workers else None
            result = fine_tune(recipe, saved.__setitem__, on_ray=way.workers > 0, storage=storage)
        seconds = time.process_time() - start
        model = strip_checkpoint(inputs, recipe.ranges, assignment, saved[result.checkpoint])
        batches = inputs.samples.test or inputs.samples.validation
        piece = {
            "untrained": result.history[0].metrics,
            "best_epoch": result.best_epoch,
            "last": result.history[-1].metrics,
            "judged": judge(inputs, model, batches).values,
            "seconds": seconds,
            "commit": code_state(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(piece))
        print(f"{self.name}, {budget}, {name}, {seed}: {piece['judged']}, {seconds:.0f} s", flush=True)

    def ways(self) -> dict[str, Way]:
        """The recipes, and uniform assignments by the default one."""
        own = {f"uniform {scheme}": Way(uniform=scheme) for scheme in self.problem.uniform}
        workers = WORKERS if self.name == "digits" else {}
        ways = {**WAYS, **own, **workers}
        return {name: way for name, way in ways.items() if name not in self.problem.without}

    def budgets(self, way: Way | None) -> tuple[str, ...]:
        """Those at which a recipe is trained: what is uniform is the same at each, so at the first alone."""
        budgets = self.problem.budgets
        return budgets if way is None or way.uniform is None else budgets[:1]

    def commits(self) -> set[str]:
        """Of the code that trained what is there."""
        paths = sorted((self._folder / self.name).glob("*.json"))
        return {json.loads(path.read_text()).get("commit", "a commit not kept") for path in paths}

    def pieces(self, budget: str, way: str) -> dict[int, dict[str, Any]]:
        """Seed → what is there."""
        pieces: dict[int, dict[str, Any]] = {}
        for seed in range(20):
            path = self.path(budget, way, seed)
            if path.exists():
                pieces[seed] = json.loads(path.read_text())
        return pieces


def table(trained: Trained) -> str:
    """A problem's part of the page; "" where nothing was trained."""
    problem = trained.problem
    columns = [(budget, *measure) for budget in problem.budgets for measure in problem.measures]
    heads: list[str] = []
    for budget, name, factor in columns:
        unit = f" × {factor:g}" if factor > 1 else ""
        heads.append(f"{budget}: {name}{unit}")
    rule = "|---" * (len(columns) + 1)
    commits = "; ".join(sorted(trained.commits()))
    head = [
        f"## {problem.title}",
        "",
        f"Trained by the code of: {commits}.",
        "",
        f"| recipe | {' | '.join(heads)} |",
        f"{rule}|",
    ]
    lines: list[str] = []
    for way in (*trained.ways(), *PEERS.get(trained.name, ())):
        cells = [_cell(trained, way, *column) for column in columns]
        if any(cells):
            lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join([*head, *lines, *workers_line(trained)]) if lines else ""


def workers_line(trained: Trained) -> list[str]:
    """What two workers differ by from one at the same global batch, seed by seed; nothing where none ran."""
    texts: list[str] = []
    for budget in trained.problem.budgets:
        one, two = (trained.pieces(budget, way) for way in WORKERS)
        seeds = sorted(one.keys() & two.keys())
        for measure, factor in trained.problem.measures:
            pairs = [factor * (two[seed]["judged"][measure] - one[seed]["judged"][measure]) for seed in seeds]
            if len(pairs) > 1:
                error = statistics.stdev(pairs) / len(pairs) ** 0.5
                texts.append(f"{budget}, {measure}: {statistics.fmean(pairs):+.4f} ± {error:.4f}")
    if not texts:
        return []
    return [
        "",
        f"Two workers less one, at the same 64 samples a step, over {len(seeds)} seeds: {'; '.join(texts)}.",
    ]


def _cell(trained: Trained, way: str, budget: str, measure: str, factor: float) -> str:
    """The mean, its spread, and the difference to the default.

    Args:
        trained: the pieces.
        way: name of a recipe.
        budget: of the column.
        measure: of the column.
        factor: by which it is shown.
    """
    pieces = trained.pieces(budget, way)
    if not pieces:
        return ""
    values = {seed: factor * piece["judged"][measure] for seed, piece in pieces.items()}
    digits = 2 if factor > 1 else 4
    text = f"{statistics.fmean(values.values()):.{digits}f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values.values()):.{digits}f}"
    defaults = trained.pieces(budget, DEFAULT)
    pairs: list[float] = []
    for seed, value in values.items():
        if seed in defaults:
            pairs.append(value - factor * defaults[seed]["judged"][measure])
    if way == DEFAULT or not pairs:
        return f"{text} (n = {len(values)})"
    difference = f"{statistics.fmean(pairs):+.{digits}f}"
    if len(pairs) > 1:
        difference += f" ± {statistics.stdev(pairs) / len(pairs) ** 0.5:.{digits}f}"
    return f"{text} ({difference}; n = {len(pairs)})"


def main() -> None:
    """Train what is missing, for some minutes, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problems", nargs="*", default=list(PROBLEMS))
    parser.add_argument("--recipes", nargs="*", help="some of them by name; default: all in one process")
    parser.add_argument("--budgets", nargs="*", help="some of a problem's; default: all of them")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--pieces", type=Path, default=Path("training-pieces"))
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no further piece begins")
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    for name in options.problems:
        trained = Trained(name, options.pieces)
        ways = trained.ways()
        for seed in range(options.seeds):
            for way in options.recipes or [way for way in ways if way not in WORKERS]:
                for budget in trained.budgets(ways.get(way)):
                    if options.budgets and budget not in options.budgets:
                        continue
                    if way in ways and time.monotonic() - start < 60 * options.minutes:
                        trained.train(budget, way, ways[way], seed)
    tables = [table(Trained(name, options.pieces)) for name in PROBLEMS]
    page = PAGE.format(
        date=options.date,
        machine=processor(),
        torch=torch.__version__,
        tables="\n\n".join(filter(None, tables)),
    )
    RESULT.write_text(page)


if __name__ == "__main__":
    main()
