"""Run, submit, retrieve, resolve, report and export as Python functions."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from raysearch.artifacts import RunStore, new_run_id, resolve_run
from raysearch.artifacts import retrieve as retrieve_run
from raysearch.assembly import export, make_objective, make_replica, search_shards, strip_checkpoint
from raysearch.cluster.pool import LocalPool, Pool
from raysearch.config import Config, load_config, with_search
from raysearch.determinism import pinned_threads, seeded
from raysearch.errors import ConfigError, RunError, TaskError
from raysearch.evaluation import Replica
from raysearch.inputs import Inputs, check_inputs, place_task, versions
from raysearch.pipeline import Walk
from raysearch.progress import Listener, Progress, reporting, stoppable
from raysearch.records import (
    BitAssignment,
    CostModel,
    ExportManifest,
    QuantizerSetup,
    RunResult,
    RunStatus,
    SearchTrial,
    SensitivityTable,
    parse_budgets,
)
from raysearch.report import render_report
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

DEFAULT_STORAGE = "runs"


def silent(status: RunStatus) -> None:
    """A listener that shows nothing."""


def run(
    task: Task | str,
    budget: str | Sequence[str] = (),
    storage: str | os.PathLike[str] = DEFAULT_STORAGE,
    *,
    minimize: str | None = None,
    max_drop: str | Mapping[str, float | str] | None = None,
    config: Config | Mapping[str, Any] | None = None,
    run_id: str | None = None,
    resume: bool = False,
    address: str = "local",
    workers: int | None = None,
    listener: Listener = silent,
) -> RunResult:
    """Quantize a model under a budget: the whole walk.

    Args:
        task: a `Task`, or `path/to/file.py:factory`, or `package.module:factory`.
        budget: one expression such as "avg_bits<=4", or several that must all hold; none is needed with
            `minimize`.
        storage: folder or URI below which the run's folder is made.
        minimize: a kind of cost to minimise instead, while `max_drop` holds (`search.minimize`).
        max_drop: the most that a metric, measured on the search's samples before training, may get worse than
            the float model's: {"accuracy": 0.01}, {"accuracy": "1%"} or "accuracy=1%" (`search.max_drop`).
        config: settings, as a `Config` or a nested mapping such as {"search": {"num_trials": 32}}.
        run_id: name of the run; made from the time by default.
        resume: go on with the run `run_id`; finished units, batches and stages are read, not repeated.
        address: "local" (an embedded Ray), "auto" (the cluster of the environment) or "HOST[:PORT]".
        workers: actors; 0 computes in this process without Ray. Default: `cluster.workers`. The result does
            not depend on it.
        listener: called with the status whenever it changes.

    Raises:
        BadInputError: anything that cannot be done, before compute is spent.
        RunError: something failed; finished work is kept, and `resume` goes on with it.
    """
    settings = config if isinstance(config, Config) else load_config(overrides=config)
    if minimize is not None or max_drop is not None:
        settings = with_search(settings, minimize=minimize, max_drop=max_drop)
    if workers is not None:
        settings = settings.model_copy(
            update={"cluster": settings.cluster.model_copy(update={"workers": workers})}
        )
    texts = (budget,) if isinstance(budget, str) else tuple(budget)
    if resume and run_id is None:
        raise ConfigError("resume needs the run to go on with; give its run id (--run-id).")
    store = RunStore(storage, run_id or new_run_id())
    if resume:
        store.open()
    # A factory or a loader that draws from a global generator draws the same when the run is resumed.
    with pinned_threads(settings.cluster.threads), seeded(derive_seed(settings.seed, "task")):
        loaded = load_task(task)
        inputs = check_inputs(loaded, settings, texts)
    name = task if isinstance(task, str) else type(loaded.model).__name__
    saved = {"task": name, "budget": list(texts), **settings.fixed()}
    if resume:
        store.check_same(saved, inputs.fingerprints, ignore=("task",))
    else:
        store.create(saved, inputs.fingerprints, versions())
    progress = Progress(store, listener)
    with reporting(progress), _session(settings, address) as make_pool, stoppable():
        walk = Walk(inputs, store, progress, make_pool, on_ray=settings.cluster.workers > 0)
        with seeded(derive_seed(settings.seed, "walk")):
            return walk.run()


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
    return resolve_run(run, storage).load_status()


def inspect(task: Task | str, config: Config | None = None) -> tuple[QuantizerSetup, CostModel]:
    """Placement and cost model of a task; no compute but one capture is spent.

    Raises:
        BadInputError: the task, its model or a scope rule is not usable.
    """
    loaded = load_task(task)
    setup = place_task(loaded, config or Config())
    return setup, CostModel(setup)


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
    chosen = store.load_search().best.assignment if store.has("search") else None
    return store.load_setup(), store.load_sensitivity(), chosen


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
    setup, table = store.load_setup(), store.load_sensitivity()
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
            _session(inputs.config, address) as make_pool,
            closing(make_pool(make_replica(inputs, shards))) as pool,
        ):
            race = Race(make_objective(inputs, store.load_ranges(), pool, per_sample), len(shards))
            found = measured_candidates(
                store.load_sensitivity(),
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
    result = store.load_result()
    page = render_report(
        result,
        store.load_setup(),
        store.load_search(),
        sensitivity=store.load_sensitivity(),
        fine_tune=store.load_finetune(),
        manifest=store.load_manifest(),
        metrics=store.load_metrics(),
    )
    store.save_report(page)
    store.save_result(replace(result, report=f"{store.uri}/report.html"))
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
        assignment = store.load_search().best.assignment
        state = store.load_checkpoint(store.load_finetune().checkpoint)
        stripped = strip_checkpoint(inputs, store.load_ranges(), assignment, state)
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


@contextmanager
def _session(config: Config, address: str) -> Iterator[Callable[[Replica], Pool]]:
    cluster = config.cluster
    if cluster.workers == 0:
        yield partial(_local_pool, deterministic=cluster.deterministic)
        return
    from raysearch.cluster.ray_pool import RayPool
    from raysearch.cluster.session import ray_session

    with ray_session(
        address,
        cluster.workers,
        cpus_per_worker=max(cluster.cpus_per_worker, config.training.cpus_per_worker),
        num_train_workers=config.training.num_workers,
    ) as session:
        yield partial(
            RayPool,
            num_workers=cluster.workers,
            threads=cluster.threads,
            cpus_per_worker=cluster.cpus_per_worker,
            gpus_per_worker=cluster.num_gpus(session.resources.get("GPU", 0) > 0),
            deterministic=cluster.deterministic,
            unit_timeout=cluster.unit_timeout_seconds,
            startup_timeout=cluster.startup_timeout_seconds,
        )


def _local_pool(replica: Replica, deterministic: bool) -> Pool:
    return LocalPool(replica.place(), deterministic=deterministic)
