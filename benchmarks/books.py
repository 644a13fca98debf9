"""The books of large runs: seconds and memory of everything that reads or writes them, without any compute.

Tables are made up: weights of four widths, every one of them free, and trials that were never measured. Each
step runs in a process of its own, so that its memory is its own. Writes results/books.md.

    python -m benchmarks.books [--options 4000 8000 …] [--trials 20000 …] [--folder FOLDER] [--steps NAME …]

With --folder the tables stay there, so that --steps measures one step after the other; rows are only printed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from raysearch.artifacts import RunStore, codecs
from raysearch.artifacts.trial_blocks import TrialBlocks
from raysearch.config import SearchConfig
from raysearch.pipeline.journal import save_journal
from raysearch.records import (
    BitAssignment,
    CostModel,
    Granularity,
    OptionEffect,
    QuantizationPoint,
    QuantizerGroup,
    QuantizerSetup,
    RunStatus,
    SearchResult,
    SearchTrial,
    SensitivityTable,
    Site,
    Trace,
    parse_budgets,
)
from raysearch.records.low_rank import MOST_DENSE, LowRank
from raysearch.saved_run import load_run
from raysearch.search import PlainEvaluator, TrialLog, search_assignment

RESULTS = Path(__file__).parent / "results" / "books.md"
WIDTHS = (2, 3, 4, 8)
BUDGET = "avg_bits<=4"
NUM_FACTORS = 16
NUM_COLUMNS = 2048
"""Of the factor that is stored in place of K, such as 128 samples with 16 values each."""
TRIAL_LAYERS = 24
STEP_SECONDS = 400
NUM_BEGUN = 128


def make_setup(num_weights: int) -> QuantizerSetup:
    points: dict[str, QuantizationPoint] = {}
    groups: dict[str, QuantizerGroup] = {}
    for index in range(num_weights):
        name = f"blocks.{index}.linear.weight"
        site = Site(f"blocks.{index}.linear", "parameter", "weight")
        points[name] = QuantizationPoint(name, "weight", (site,), (256, 256), Granularity(0), macs=256 * 256)
        groups[name] = QuantizerGroup(name, (name,), WIDTHS)
    return QuantizerSetup(points, groups, stored=())


def make_table(setup: QuantizerSetup) -> SensitivityTable:
    draw = np.random.default_rng(0)
    options = setup.options()
    errors = np.array([2.0**-scheme.num_bits for _, scheme in options])
    num_factors = NUM_FACTORS if len(options) <= MOST_DENSE else NUM_COLUMNS
    factor = draw.standard_normal((len(options), num_factors)) * errors[:, None]
    own = np.einsum("qm,qm->q", factor, factor)
    gram = factor @ factor.T if len(options) <= MOST_DENSE else LowRank(factor)
    effects = {}
    for index, (group, scheme) in enumerate(options):
        half = 0.5 * float(own[index])
        effects[group, scheme] = OptionEffect(group, scheme, "weight", half, half, half, half)
    traces = {name: Trace(name, 1.0, 0.1, 0.1, 0.1, 4, 64, "ggn", True) for name in setup.points}
    return SensitivityTable(traces, effects, gram, "f" * 32, 0.0)


def begun(setup: QuantizerSetup, settings: SearchConfig, trials: Sequence[SearchTrial] = ()) -> SearchResult:
    """A search over made-up values, from trials that are known."""
    evaluator = PlainEvaluator(lambda assignments: dict.fromkeys(assignments, 1.5))
    budgets = parse_budgets([BUDGET])
    return search_assignment(make_table(setup), setup, budgets, evaluator, settings, log=TrialLog(trials))


def make_trials(setup: QuantizerSetup, count: int) -> tuple[SearchTrial, ...]:
    """The first ones of a search, among them its warm starts, and then any that keep the budget."""
    settings = SearchConfig().model_copy(
        update={"num_trials": NUM_BEGUN, "num_finalists": 0, "batch_size": 8}
    )
    trials = list(begun(setup, settings).trials)
    known = {trial.assignment.digest() for trial in trials}
    draw = np.random.default_rng(1)
    model = CostModel(setup)
    while len(trials) < count:
        widths = draw.choice(WIDTHS, len(setup.groups))
        assignment = BitAssignment(dict(zip(setup.groups, widths.tolist(), strict=True)))
        costs = model.costs(assignment)
        if costs["avg_bits"] > 4 or assignment.digest() in known:
            continue
        known.add(assignment.digest())
        excess = {BUDGET: costs["avg_bits"] / 4 - 1}
        value = 1.0 + float(draw.random())
        trial = SearchTrial(len(trials), assignment, costs, excess, value, 1.0, "thompson")
        trials.append(replace(trial, num_samples=64, rounds={64: value}))
    return tuple(trials)


def new_store(folder: Path) -> RunStore:
    store = RunStore(folder, "run")
    store.create({"task": "made:up", "budget": [BUDGET]})
    store.save(codecs.STATUS, RunStatus("run", "done", "export"))
    return store


def open_store(folder: Path) -> RunStore:
    return RunStore(folder, "run")


def save_options(folder: Path, count: int) -> Callable[[], Any]:
    setup = make_setup(count // len(WIDTHS))
    table = make_table(setup)
    store = new_store(folder)

    def save() -> None:
        store.save(codecs.SETUP, setup)
        store.save(codecs.SENSITIVITY, table)

    return save


def load_options(folder: Path, count: int) -> Callable[[], Any]:
    return lambda: open_store(folder).load(codecs.SENSITIVITY)


def resolve(folder: Path, count: int) -> Callable[[], Any]:
    return lambda: load_run("run", folder).resolve(BUDGET)


def resolve_by_errors(folder: Path, count: int) -> Callable[[], Any]:
    return lambda: load_run("run", folder).resolve(BUDGET, surrogate="hawq")


def report_of_options(folder: Path, count: int) -> Callable[[], Any]:
    """Of a run whose search is done."""
    store = open_store(folder)
    setup = store.load(codecs.SETUP)
    assignment = BitAssignment(dict.fromkeys(setup.groups, WIDTHS[2]))
    best = SearchTrial(
        0, assignment, CostModel(setup).costs(assignment), {BUDGET: 0.0}, 1.5, 1.5, "uniform 4"
    )
    store.save(codecs.SEARCH, SearchResult(best, (best,), (best,), 0.0, {"uniform 4": 1.5}))
    return lambda: load_run("run", folder).report()


def report(folder: Path, count: int) -> Callable[[], Any]:
    return lambda: load_run("run", folder).report()


def save_trials(folder: Path, count: int) -> Callable[[], Any]:
    setup = make_setup(TRIAL_LAYERS)
    trials = make_trials(setup, count)
    store = new_store(folder)
    store.save(codecs.SETUP, setup)
    blocks = TrialBlocks(store)
    blocks.save(trials[:-8])
    return lambda: blocks.save(trials)


def load_trials(folder: Path, count: int) -> Callable[[], Any]:
    def refuse(codec: Any, error: Exception) -> None:
        raise error

    return lambda: TrialBlocks(open_store(folder)).load(refuse)


def go_on(folder: Path, count: int) -> Callable[[], Any]:
    """The replay of what an interrupted search measured, and one batch more."""
    setup = open_store(folder).load(codecs.SETUP)
    settings = SearchConfig().model_copy(
        update={"num_trials": count + 8, "num_finalists": 0, "batch_size": 8}
    )
    return lambda: begun(setup, settings, load_trials(folder, count)())


def save_search(folder: Path, count: int) -> Callable[[], Any]:
    store = open_store(folder)
    trials = load_trials(folder, count)()
    best = min(trials, key=lambda trial: trial.value)
    result = SearchResult(best, trials, (best,), 0.0, {"thompson": best.value})
    return lambda: store.save(codecs.SEARCH, result)


def load_search(folder: Path, count: int) -> Callable[[], Any]:
    return lambda: open_store(folder).load(codecs.SEARCH)


def journal(folder: Path, count: int) -> Callable[[], Any]:
    return lambda: save_journal(open_store(folder), folder / "study.journal")


def status(folder: Path, count: int) -> Callable[[], Any]:
    return lambda: load_run("run", folder).status()


Step = Callable[[Path, int], Callable[[], Any]]

OPTION_STEPS: dict[str, Step] = {
    "save setup and sensitivity": save_options,
    "load sensitivity": load_options,
    "status": status,
    "resolve, hawq": resolve_by_errors,
    "resolve, response": resolve,
    "report": report_of_options,
}
TRIAL_STEPS: dict[str, Step] = {
    "save a batch of 8": save_trials,
    "load": load_trials,
    "replay and one batch": go_on,
    "save the result": save_search,
    "load the result": load_search,
    "status": status,
    "report": report,
    "journal": journal,
}


def timed(step: Step, folder: Path, count: int, queue: Any) -> None:
    action = step(folder, count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu = time.perf_counter(), time.process_time()
    action()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queue.put((seconds, cpu_seconds, (after - before) / 1024, after / 1024))


def measured(step: Step, folder: Path, count: int) -> str:
    """A row's cells: CPU seconds, and memory beyond and with what was there before."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=timed, args=(step, folder, count, queue))
    process.start()
    process.join(STEP_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return f"> {STEP_SECONDS} | |"
    if process.exitcode:
        return f"failed ({process.exitcode}) | |"
    _, cpu, more, most = queue.get()
    return f"{cpu:.2f} | {more:.0f} | {most:.0f}"


def table_of(
    what: str, counts: list[int], steps: dict[str, Step], scratch: Path, names: Sequence[str]
) -> list[str]:
    lines = [f"| {what} | step | CPU s | MiB more | MiB in all |", "|---|---|---|---|---|"]
    for count in counts:
        folder = scratch / f"{what}-{count}"
        for name in names or steps:
            if name not in steps:
                continue
            step = steps[name]
            lines.append(f"| {count:,} | {name} | {measured(step, folder, count)} |")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--options", type=int, nargs="*", default=[4000, 8000, 12_000])
    parser.add_argument("--trials", type=int, nargs="*", default=[20_000, 100_000])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--steps", nargs="*", default=())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.folder or Path(temporary)
        lines = ["# Books of large runs", "", "`python -m benchmarks.books`", ""]
        lines += table_of("options", options.options, OPTION_STEPS, scratch, options.steps)
        lines += ["", f"Trials of {TRIAL_LAYERS} weights:", ""]
        lines += table_of("trials", options.trials, TRIAL_STEPS, scratch, options.steps)
    if options.folder is None:
        RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
