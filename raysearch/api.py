"""Run a task, or look at it, as Python functions."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from raysearch.artifacts import (
    DEFAULT_STORAGE,
    RunStore,
    Storage,
    codecs,
    driver_log,
    new_run_id,
    owned,
    resolve_run,
)
from raysearch.callbacks import Callback, Followers, find_callback
from raysearch.config import Config, load_config, with_defaults, with_search
from raysearch.determinism import pinned_threads, plain_modes, process_as_found, seeded
from raysearch.errors import ConfigError
from raysearch.pipeline.fingerprints import versions
from raysearch.pipeline.inputs import Inputs, check_inputs, place_task
from raysearch.pipeline.pipeline import Pipeline
from raysearch.pipeline.pools import get_ready, joined_cluster, pool_session
from raysearch.pipeline.preflight import preflight
from raysearch.pipeline.preflight.training import trains
from raysearch.pipeline.progress import Listener, Preparation, Progress, reporting, stoppable
from raysearch.pipeline.reuse import EarlierRun
from raysearch.pipeline.workers import with_workers
from raysearch.records import CostModel, QuantizerSetup, RunResult, RunStatus
from raysearch.reporting.live import ProgressLines
from raysearch.reporting.provenance import way_on
from raysearch.search import LiveStudy
from raysearch.seeding import derive_seed
from raysearch.task import Task, load_task
from raysearch.training.loggers import check_loggers

if TYPE_CHECKING:
    from raysearch.cluster.nodes import NodeCheck

_log = logging.getLogger(__name__)

FOLLOW_DEVICE = ("cluster.device", "training.use_gpu")
"""Settings that may be left open until the machines are known; they are compared when they are."""


def silent(status: RunStatus) -> None:
    """A listener that shows nothing."""


@process_as_found()
def run(
    task: Task | str | None = None,
    budget: str | Sequence[str] = (),
    storage: str | os.PathLike[str] = DEFAULT_STORAGE,
    *,
    start_from: str | os.PathLike[str] | None = None,
    trial: int | None = None,
    minimize: str | None = None,
    max_drop: str | Mapping[str, float | str] | None = None,
    config: Config | Mapping[str, Any] | None = None,
    run_id: str | None = None,
    resume: bool = False,
    address: str = "local",
    workers: int | None = None,
    listener: Listener = silent,
    callbacks: Sequence[Callback | str] = (),
    progress: bool = False,
) -> RunResult:
    """Quantize a model under a budget: the whole walk.

    Args:
        task: a `Task`, or `path/to/file.py:factory`, or `package.module:factory`; None takes that of
            `start_from`.
        budget: one expression such as "avg_bits<=4", or several that must all hold; none is needed with
            `minimize`, and with `start_from` none is that run's.
        storage: folder or URI below which the run's folder is made.
        start_from: an earlier run (id, path or URI) whose records are taken over as far as they are what this
            run would compute: the same model and data, and the same settings of each stage and those before
            it. Its settings are the defaults of this run.
        trial: number of a trial of that run which is trained and exported in place of searching.
        minimize: a kind of cost to minimise instead, while `max_drop` holds (`search.minimize`).
        max_drop: the most that a metric, measured on the search's samples before training, may get worse than
            the float model's: {"accuracy": 0.01}, {"accuracy": "1%"} or "accuracy=1%" (`search.max_drop`).
        config: settings, as a `Config` or a nested mapping such as {"search": {"num_trials": 32}}.
        run_id: name of the run; made from the time by default.
        resume: go on with the run `run_id`; finished units, batches and stages are read, not repeated.
        address: "local" (an embedded Ray), "auto" (the cluster of the environment) or "HOST[:PORT]".
        workers: actors; 0 computes in this process without Ray. Default: `cluster.workers`, by which short
            work on this machine stays in this process, and long work has an actor a core. The result does not
            depend on it.
        listener: called with the status whenever it changes.
        callbacks: are told of stages, trials, epochs and the result, see `Callback`; "mlflow", "wandb",
            "tensorboard" or the "module:factory" of your own stand for one of its default form.
        progress: show how far it is, as the command line does: a bar on a terminal and in a notebook, else a
            line a stage; on stderr.

    Raises:
        BadInputError: anything that cannot be done, before compute is spent.
        RunError: something failed; finished work is kept, and `resume` goes on with it.
    """
    source = None if start_from is None else EarlierRun(resolve_run(start_from, storage), trial)
    if trial is not None and source is None:
        raise ConfigError(f"trial {trial} is of an earlier run; name the run (--from).")
    if task is None:
        if source is None:
            raise ConfigError("a run needs a task, or an earlier run to start from (--from).")
        task = source.task
    settings = config if isinstance(config, Config) else load_config(overrides=config)
    if source is not None:
        settings = with_defaults(settings, source.settings)
    if minimize is not None or max_drop is not None:
        settings = with_search(settings, minimize=minimize, max_drop=max_drop)
    if workers is not None:
        settings = _with_workers(settings, workers)
    followers = Followers([find_callback(each) if isinstance(each, str) else each for each in callbacks])
    texts = (budget,) if isinstance(budget, str) else tuple(budget)
    if source is not None and not texts and settings.search.minimized_kind is None:
        texts = source.budget
    if resume and run_id is None:
        raise ConfigError("resume needs the run to go on with; give its run id (--run-id).")
    store = RunStore(storage, run_id or new_run_id())
    if resume:
        # A run that is not there is told before the task is loaded.
        settings = _as_resumed(settings, store.open()["config"])
    else:
        store.check_vacant()
    told = ""
    with ExitStack() as machines:
        if progress:
            lines = ProgressLines()
            machines.callback(lines.close)
            listener = partial(_tell_both, listener, lines)
        before = Preparation(store.run_id, listener)
        # A factory or a loader that draws from a global generator draws the same when the run is resumed.
        with (
            pinned_threads(settings.cluster.threads),
            seeded(derive_seed(settings.seed, "task")),
            ExitStack() as asking,
        ):
            with before.step("task"):
                loaded = load_task(task)
            settings = with_defaults(settings, loaded.settings)
            joined = machines.enter_context(joined_cluster(settings.cluster, address))
            nodes = None
            if joined is not None:
                # It imports Ray, which a run in this process does without.
                from raysearch.pipeline.preflight.cluster import asked_cluster

                with before.step("cluster"):
                    nodes = asking.enter_context(asked_cluster(loaded, settings, Storage(storage)))
            # The task's file may have set modes of its own.
            with plain_modes(), pinned_threads(settings.cluster.threads):
                with before.step("checks"):
                    inputs = with_workers(check_inputs(loaded, settings, texts), address)
                settings = inputs.config
                # The run has a model of its own now; that of a task that was named is nobody else's.
                del loaded
                check_loggers(settings.training.loggers, store.storage)
                if settings.search.storage is not None:
                    study = LiveStudy(store.run_id, inputs.setup, inputs.budgets, inputs.search)
                    followers.add(study)
                started: dict[str, Any] = {"task": _task_name(task), "budget": list(texts)}
                if source is not None:
                    started["start_from"] = source.as_started
                    source.check(started | settings.fixed(), inputs, FOLLOW_DEVICE)
                graphs = None
                if not resume:
                    get_ready(settings, joined)
                    with before.step("preflight"):
                        graphs = preflight(inputs, partial(_tell_step, before, nodes))
                if nodes is not None:
                    with before.step("cluster"):
                        told = nodes.finish()
        if resume:
            ignore = ("task", *FOLLOW_DEVICE, *_changeable(store))
            store.check_same(started | settings.fixed(), inputs.fingerprints, ignore=ignore)
        else:
            store.create(started | settings.fixed(), inputs.fingerprints, versions())
        # The order counts: `stoppable` sets its signal handler after Ray has set its own, and `reporting`
        # sees what goes wrong in both.
        coverage = inputs.setup.coverage
        remark = "" if coverage is None else coverage.describe()
        # A job on a cluster goes on by `submit`, of which it knows nothing.
        next_time = ""
        if address == "local":
            next_time = way_on(store.run_id, store.open(), str(storage), settings.cluster.workers)
        with (
            plain_modes(),
            owned(store),
            driver_log(store),
            reporting(Progress(store, listener, before.seconds, followers), remark, next_time) as tracker,
            followers.told_of_end(),
            ExitStack() as stack,
        ):
            followers.tell("on_start", store.run_id, store.uri, started | settings.fixed())
            with tracker.stage("workers"):
                session = stack.enter_context(pool_session(settings, address, trains(inputs)))
            stack.enter_context(stoppable())
            if told:
                _log.info("%s", told)
            settings = session.config
            _settle_device(store, started | settings.fixed())
            if source is not None:
                source.take_over(store, started | settings.fixed(), inputs)
            inputs = _on_device(inputs, settings)
            on_ray = session.trains_on_ray
            pipeline = Pipeline(inputs, store, tracker, session.open_pool, on_ray=on_ray, graphs=graphs)
            with seeded(derive_seed(settings.seed, "walk")):
                result = pipeline.run()
            followers.tell("on_result", result)
        return result


def _tell_both(first: Listener, second: Listener, status: RunStatus) -> None:
    first(status)
    second(status)


def _tell_step(before: Preparation, nodes: NodeCheck | None, done: int, total: int) -> None:
    """Say how far the preflight is; a node that has refused the run meanwhile ends it."""
    before.tell("preflight", done, total)
    if nodes is not None:
        nodes.judge()


def _task_name(task: Task | str) -> str:
    """As `run.json` names it: the factory, or the model's class."""
    return task if isinstance(task, str) else type(task.model).__name__


def _as_resumed(settings: Config, recorded: Mapping[str, Any]) -> Config:
    """The settings of a run that goes on: what "auto" left open is what the run has."""
    objective = recorded.get("objective", {})
    # What the defaults were before outputs chose their comparison themselves.
    if (objective.get("divergence"), objective.get("class_dim")) == ("kl", -1):
        judged = settings.objective
        if judged.divergence == "auto" and judged.class_dim is None:
            judged = judged.model_copy(update={"divergence": "kl", "class_dim": -1})
        settings = settings.model_copy(update={"objective": judged})
    if settings.cluster.device == "auto" and recorded.get("cluster", {}).get("device") == "cpu":
        return settings.model_copy(update={"cluster": settings.cluster.settled(has_gpus=False)})
    return settings


def _settle_device(store: RunStore, config: Mapping[str, Any]) -> None:
    """Keep the device in force in `run.json`; refuse another one than that of what was computed already.

    Settings of training that changed are kept as well.

    Raises:
        StorageError: the run has computed on another device.
    """
    recorded = store.open()["config"]
    known = {
        "cluster.device": recorded["cluster"]["device"],
        "training.use_gpu": recorded["training"]["use_gpu"],
    }
    still_open = [name for name in FOLLOW_DEVICE if known[name] in ("auto", None)]
    store.check_same(config, ignore=("task", *still_open, *_changeable(store)))
    if still_open or recorded["training"] != config["training"]:
        store.settle(config)
    _log.info("run %s computes on %s", store.run_id, config["cluster"]["device"])


def _on_device(inputs: Inputs, settings: Config) -> Inputs:
    """The inputs with the settings in force; what was measured on a GPU is known by it."""
    fingerprints = dict(inputs.fingerprints)
    # The name is left out on CPUs: runs of before it existed stay the same.
    if settings.cluster.device != "cpu":
        fingerprints["device"] = settings.cluster.device
    return replace(inputs, config=settings, fingerprints=fingerprints)


def _changeable(store: RunStore) -> tuple[str, ...]:
    """Sections that may differ from those that a run was started with: training's, until it is over."""
    return () if store.has(codecs.FINE_TUNE) else ("training",)


def _with_workers(config: Config, workers: int) -> Config:
    cluster = config.cluster.model_copy(update={"workers": workers})
    return config.model_copy(update={"cluster": cluster})


@process_as_found()
def inspect(
    task: Task | str, config: Config | Mapping[str, Any] | None = None
) -> tuple[QuantizerSetup, CostModel]:
    """Placement and cost model of a task; no compute but one capture is spent.

    Args:
        task: see `run`.
        config: see `run`.

    Raises:
        BadInputError: the task, its model or a scope rule is not usable.
    """
    settings = config if isinstance(config, Config) else load_config(overrides=config)
    loaded = load_task(task)
    with plain_modes():
        setup = place_task(loaded, with_defaults(settings, loaded.settings))
    return setup, CostModel(setup)
