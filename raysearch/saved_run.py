"""What can be asked of a saved run: retrieve, status, resolve, report, export."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from raysearch.artifacts import RunStore, codecs, resolve_run
from raysearch.artifacts import retrieve as retrieve_run
from raysearch.config import load_config
from raysearch.determinism import pinned_threads, seeded
from raysearch.errors import RunError, TaskError
from raysearch.pipeline.inputs import Inputs, check_inputs
from raysearch.pipeline.pools import pool_session
from raysearch.pipeline.stages import export, make_objective, make_replica, search_shards, strip_checkpoint
from raysearch.records import (
    BitAssignment,
    ExportManifest,
    QuantizerSetup,
    RunStatus,
    SearchTrial,
    SensitivityTable,
    parse_budgets,
)
from raysearch.reporting import render_report
from raysearch.search import (
    OptionSpace,
    Race,
    check_budgets,
    make_surrogate,
    measured_candidates,
    search_assignment,
)
from raysearch.seeding import derive_seed
from raysearch.task import Task, load_task


def retrieve(
    run: str | os.PathLike[str], storage: str | os.PathLike[str] | None, to: str | os.PathLike[str]
) -> Path:
    """Copy a finished run to a local folder and verify every model file by its hash.

    Args:
        run: a run id, or the path or URI of a run's folder.
        storage: where runs are; needed for a bare run id.
        to: a folder that is empty, does not exist yet, or holds this same run.

    Returns:
        The folder; its `model/` is what `load_model` takes.

    Raises:
        StorageError: no such run, not finished, or a file differs from its hash.
    """
    return retrieve_run(run, storage, to)


def status(run: str | os.PathLike[str], storage: str | os.PathLike[str] | None = None) -> RunStatus:
    """The current status of a run, from its folder.

    Raises:
        StorageError: there is no such run.
    """
    return resolve_run(run, storage).load(codecs.STATUS)


def load_sensitivity(
    run: str | os.PathLike[str], storage: str | os.PathLike[str] | None = None
) -> tuple[QuantizerSetup, SensitivityTable, BitAssignment | None]:
    """What a run measured, and what it chose once its search is done; nothing is computed.

    Returns:
        The setup, the sensitivity table, and the winning assignment or None.

    Raises:
        StorageError: there is no such run, or it has no sensitivity table yet.
    """
    store = resolve_run(run, storage)
    chosen = store.load(codecs.SEARCH).best.assignment if store.has(codecs.SEARCH) else None
    return store.load(codecs.SETUP), store.load(codecs.SENSITIVITY), chosen


def resolve(
    run: str | os.PathLike[str],
    budget: str | Sequence[str],
    storage: str | os.PathLike[str] | None = None,
    *,
    surrogate: str = "response",
) -> SearchTrial:
    """The best assignment for another budget by the saved sensitivity table; nothing is measured.

    Returns:
        A trial whose `value` and `predicted` are both the surrogate's prediction.

    Raises:
        StorageError: there is no such run, or it has no sensitivity table yet.
        BudgetError: the budget cannot be read or met.
    """
    store = resolve_run(run, storage)
    setup, table = store.load(codecs.SETUP), store.load(codecs.SENSITIVITY)
    budgets = parse_budgets((budget,) if isinstance(budget, str) else budget)
    check_budgets(budgets, setup)
    space = OptionSpace(setup)
    scores = make_surrogate(surrogate, table, space)

    def predict(assignments: Mapping[int, BitAssignment]) -> dict[int, float]:
        return {n: float(scores.predict(space.choices(a))) for n, a in assignments.items()}

    return search_assignment(table, setup, budgets, predict, num_trials=1, surrogate=surrogate).best


def resolve_measured(
    run: str | os.PathLike[str],
    budget: str | Sequence[str],
    storage: str | os.PathLike[str] | None = None,
    *,
    count: int = 4,
    surrogate: str = "response",
    task: Task | str | None = None,
    address: str = "local",
    workers: int = 0,
) -> tuple[SearchTrial, ...]:
    """The best assignments for another budget, measured on the run's search samples; nothing is trained.

    `resolve`'s answer, the other surrogates' optima and the best neighbours are measured, calibrated as the
    run was. Work: `count` forwards of the search samples, and one of the float model.

    Args:
        run: a run id, or the path or URI of a run's folder.
        budget: one expression, or several that must all hold.
        storage: where runs are; needed for a bare run id.
        count: assignments to measure.
        surrogate: one of the search's.
        task: the task of the run; default: the one it names.
        address: see `run`.
        workers: actors; 0 computes in this process without Ray.

    Returns:
        Trials, best measured value first; `value` is of the run's search objective.

    Raises:
        StorageError: there is no such run, it has no sensitivity table yet, or the task is another one.
        TaskError: the run was given a `Task` object, which cannot be found again.
        BudgetError: the budget cannot be read or met.
        RunError: no value is finite, or something failed.
    """
    first = resolve(run, budget, storage, surrogate=surrogate)
    store = resolve_run(run, storage)
    budgets = parse_budgets((budget,) if isinstance(budget, str) else budget)
    with _inputs_again(store, task, {"cluster": {"workers": workers}}) as inputs:
        shards, per_sample = search_shards(inputs)
        with (
            pool_session(inputs.config, address) as open_pool,
            closing(open_pool(make_replica(inputs, shards))) as pool,
        ):
            race = Race(make_objective(inputs, store.load(codecs.RANGES), pool, per_sample), len(shards))
            found = measured_candidates(
                store.load(codecs.SENSITIVITY),
                inputs.setup,
                budgets,
                lambda assignments: {n: m.value for n, m in race(assignments).items()},
                first=first.assignment,
                count=count,
                surrogate=surrogate,
                maximize=inputs.config.search.maximize,
            )
    if not found:
        raise RunError(f"none of {count} assignments gave a finite {inputs.config.search.measured}.")
    return found


def report(run: str | os.PathLike[str], storage: str | os.PathLike[str] | None = None) -> str:
    """Render the HTML report of a finished run again, from its records.

    Returns:
        Where the report is.

    Raises:
        StorageError: there is no such run, or it is not finished.
        ConfigError: the `report` extra is not installed.
    """
    store = resolve_run(run, storage)
    result = store.load(codecs.RESULT)
    page = render_report(
        result,
        store.load(codecs.SETUP),
        store.load(codecs.SEARCH),
        sensitivity=store.load(codecs.SENSITIVITY),
        fine_tune=store.load(codecs.FINE_TUNE),
        manifest=store.load(codecs.MANIFEST),
        metrics=store.load(codecs.METRICS),
    )
    store.save(codecs.REPORT, page)
    store.save(codecs.RESULT, replace(result, report=f"{store.uri}/report.html"))
    return f"{store.uri}/report.html"


def export_run(
    run: str | os.PathLike[str],
    targets: Sequence[str],
    storage: str | os.PathLike[str] | None = None,
    *,
    task: Task | str | None = None,
) -> ExportManifest:
    """Export a trained run again, to other targets; the run's model folder is replaced.

    Args:
        run: a run id, or the path or URI of a run's folder.
        targets: the targets to write.
        storage: where runs are; needed for a bare run id.
        task: the task of the run; default: the one it names.

    Raises:
        StorageError: there is no such run, it has no trained state, or the task is another one.
        TaskError: the run was given a `Task` object, which cannot be found again.
        ExportError: a target could not be written or verified.
    """
    store = resolve_run(run, storage)
    with _inputs_again(store, task, {"export": {"targets": list(targets)}}) as inputs:
        assignment = store.load(codecs.SEARCH).best.assignment
        state = store.load_checkpoint(store.load(codecs.FINE_TUNE).checkpoint)
        stripped = strip_checkpoint(inputs, store.load(codecs.RANGES), assignment, state)
        with tempfile.TemporaryDirectory() as folder:
            manifest = export(inputs, stripped, assignment, Path(folder), store.run_id)
            store.save_model(Path(folder))
    return manifest


@contextmanager
def _inputs_again(
    store: RunStore, task: Task | str | None, changes: Mapping[str, Mapping[str, Any]]
) -> Iterator[Inputs]:
    """The inputs of a saved run, found to be the same; threads are pinned while they are used."""
    record = store.open()["config"]
    if task is None:
        task = str(record["task"])
        if ":" not in task:
            raise TaskError(
                f"the run '{store.run_id}' was started with a Task object ({task}); pass it again as task=."
            )
    settings = {k: v for k, v in record.items() if k not in ("task", "budget")}
    changed = {name: {**settings[name], **values} for name, values in changes.items()}
    config = load_config(overrides={**settings, **changed})
    with pinned_threads(config.cluster.threads), seeded(derive_seed(config.seed, "task")):
        inputs = check_inputs(load_task(task), config, record["budget"])
        store.check_same(record, inputs.fingerprints)
        yield inputs
