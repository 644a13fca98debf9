"""A run on disk or in an object store, and everything that can be asked of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from raysearch.artifacts import RunStore, codecs, copy_run, current_status, resolve_run
from raysearch.artifacts.run_record import STARTED
from raysearch.config import load_config
from raysearch.determinism import pinned_threads, plain_modes, process_as_found, seeded
from raysearch.errors import RunError, StorageError, TaskError
from raysearch.export import TARGETS, load_model, verify_folder
from raysearch.export.check_folder import FolderCheck
from raysearch.export.earlier import take_over
from raysearch.pipeline.finalists import load_chosen
from raysearch.pipeline.inputs import Inputs, check_inputs
from raysearch.pipeline.pools import pool_session
from raysearch.pipeline.result import save_report
from raysearch.pipeline.stages import (
    export,
    load_deployed,
    load_ranges,
    make_objective,
    make_replica,
    search_shards,
    strip_checkpoint,
)
from raysearch.records import (
    BitAssignment,
    Budget,
    ExportManifest,
    QuantizerSetup,
    RangeTable,
    RunResult,
    RunStatus,
    SearchResult,
    SearchTrial,
    SensitivityTable,
    parse_budgets,
)
from raysearch.reporting import ReportRecords, render_comparison, render_report
from raysearch.run_views import RunViews
from raysearch.search import (
    PlainEvaluator,
    Race,
    best_predicted,
    check_budgets,
    measured_candidates,
)
from raysearch.seeding import derive_seed
from raysearch.task import Task, load_task
from raysearch.temporary import scratch_folder

Location = str | os.PathLike[str]
"""A run id, a path or a URI."""


class SavedRun(RunViews):
    """A run that was started: its records, its model, and new answers from what it measured.

    Nothing is kept in memory: each method reads what it needs, so a run that is still going may be asked too.
    Made by `load_run`. Tables and figures are those of `RunViews`.

    Attributes:
        run_id: the run's name.
        uri: where its folder is, without credentials.

    Raises:
        StorageError: of any method: the run has not come so far, or a file is damaged.
    """

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self.run_id = store.run_id
        self.uri = store.uri

    def __repr__(self) -> str:
        return f"SavedRun({self.uri!r})"

    def status(self) -> RunStatus:
        """State, stage and progress as the run wrote them last; "failed" if its driver died silently."""
        return current_status(self._store)

    def result(self) -> RunResult:
        """What `run` returned: the assignment, its costs and the metrics."""
        return self._store.load(codecs.RESULT)

    def setup(self) -> QuantizerSetup:
        """Where the quantizers are, and which widths each group may take."""
        return self._store.load(codecs.SETUP)

    def ranges(self) -> RangeTable:
        """Scales, zero points and rounded codes of every quantizer at every width.

        They do not depend on the assignment: `create_controller` with them and any other assignment, such as
        uniform widths, gives a model that is rounded as the run's is.
        """
        return load_ranges(self._store)

    def search(self) -> SearchResult:
        """All trials, the front and the winner."""
        return self._store.load(codecs.SEARCH)

    def load_sensitivity(self) -> tuple[QuantizerSetup, SensitivityTable, BitAssignment | None]:
        """What was measured, and what was chosen once the search is done; nothing is computed.

        Returns:
            The setup, the sensitivity table, and the winning assignment or None.
        """
        assignment = load_chosen(self._store).assignment if self._store.has(codecs.SEARCH) else None
        return self.setup(), self._store.load(codecs.SENSITIVITY), assignment

    def resolve(self, budget: str | Sequence[str], *, surrogate: str = "response") -> SearchTrial:
        """The best assignment for another budget by the saved sensitivity table; nothing is measured.

        Args:
            budget: one expression, or several that must all hold.
            surrogate: predicts the loss of an assignment, one of those of `search.surrogate`.

        Returns:
            A trial whose `value` and `predicted` are both the surrogate's prediction.

        Raises:
            StorageError: there is no sensitivity table yet.
            BudgetError: the budget cannot be read or met.
        """
        setup, table = self.setup(), self._store.load(codecs.SENSITIVITY)
        budgets = _budgets(budget)
        check_budgets(budgets, setup)
        return best_predicted(table, setup, budgets, surrogate)

    def resolve_measured(
        self,
        budget: str | Sequence[str],
        *,
        count: int = 4,
        surrogate: str = "response",
        task: Task | str | None = None,
        address: str = "local",
        workers: int = 0,
    ) -> tuple[SearchTrial, ...]:
        """The best assignments for another budget, measured on the run's search samples; nothing is trained.

        `resolve`'s answer, the other surrogates' optima and the best neighbours are measured, calibrated as
        the run was. Work: `count` forwards of the search samples, and one of the float model.

        Args:
            budget: one expression, or several that must all hold.
            count: assignments to measure.
            surrogate: see `resolve`.
            task: the task of the run; default: the one it names.
            address: see `raysearch.run`.
            workers: actors; 0 computes in this process without Ray.

        Returns:
            Trials, best measured value first; `value` is of the run's search objective.

        Raises:
            StorageError: there is no sensitivity table yet, or the task is another one.
            TaskError: the run was given a `Task` object, which cannot be found again.
            BudgetError: the budget cannot be read or met.
            RunError: no value is finite, or something failed.
        """
        first = self.resolve(budget, surrogate=surrogate)
        budgets = _budgets(budget)
        store = self._store
        with self._inputs(task, {"cluster": {"workers": workers}}) as inputs:
            shards, per_sample = search_shards(inputs)
            with ExitStack() as stack:
                session = stack.enter_context(pool_session(inputs.config, address))
                inputs = replace(inputs, config=session.config)
                pool = stack.enter_context(closing(session.open_pool(make_replica(inputs, shards))))
                objective = make_objective(inputs, load_ranges(store), pool, per_sample)
                race = Race(objective, len(shards), maximize=inputs.search.maximize)

                def measure(assignments: Mapping[int, BitAssignment]) -> dict[int, float]:
                    return {number: measured.value for number, measured in race(assignments).items()}

                trials = measured_candidates(
                    store.load(codecs.SENSITIVITY),
                    inputs.setup,
                    budgets,
                    PlainEvaluator(measure),
                    inputs.search.model_copy(update={"surrogate": surrogate}),
                    first=first.assignment,
                    count=count,
                )
        if not trials:
            raise RunError(f"none of {count} assignments gave a finite {inputs.config.search.measured}.")
        return trials

    def report(self) -> str:
        """Render the HTML report again from the run's records; of an unfinished run, from those there are.

        Returns:
            Where the report is.

        Raises:
            StorageError: a record is damaged.
            ConfigError: jinja2 is not installed.
        """
        store = self._store
        if store.has(codecs.RESULT):
            result = save_report(store, self.result())
            store.save(codecs.RESULT, result)
            return result.report
        store.save(codecs.REPORT, render_report(ReportRecords.load(store)))
        return f"{store.uri}/{codecs.REPORT.files[0]}"

    def compare(self, other: SavedRun, to: str | os.PathLike[str]) -> Path:
        """Write a page with this run and another one side by side.

        Args:
            other: the other run.
            to: the file.

        Raises:
            StorageError: a record is damaged, or the file cannot be written.
            ConfigError: jinja2 is not installed.
        """
        page = render_comparison(ReportRecords.load(self._store), ReportRecords.load(other._store))
        path = Path(to).expanduser().absolute()
        try:
            path.write_text(page, encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}.") from error
        return path

    def export(self, targets: Sequence[str], *, task: Task | str | None = None) -> ExportManifest:
        """Export a trained run to further targets; those that it has are written again with them.

        Where the packages of one that it has are not installed here, its files stay as they are.

        Args:
            targets: the targets to add.
            task: the task of the run; default: the one it names.

        Raises:
            StorageError: there is no trained state, or the task is another one.
            TaskError: the run was given a `Task` object, which cannot be found again.
            ExportError: a target could not be written or verified.
        """
        store = self._store
        earlier = self._exported()
        old = [name for name in earlier if name not in targets and TARGETS[name].extra.missing()]
        names = [name for name in dict.fromkeys([*earlier, *targets]) if name not in old]
        with self._inputs(task, {"export": {"targets": names}}) as inputs:
            assignment = load_chosen(store).assignment
            checkpoint = store.load_checkpoint(store.load(codecs.FINE_TUNE).checkpoint)
            stripped = strip_checkpoint(inputs, load_deployed(store), assignment, checkpoint)
            with scratch_folder() as folder:
                manifest = export(inputs, stripped, assignment, folder, self.run_id)
                if old:
                    model = store.storage.child("model")
                    manifest = take_over(old, store.load(codecs.MANIFEST), model, folder)
                store.save_model(folder)
        return manifest

    def _exported(self) -> list[str]:
        """The targets that the model folder has."""
        if not self._store.has(codecs.MANIFEST):
            return []
        paths = {file.path for file in self._store.load(codecs.MANIFEST).files}
        return [name for name, target in TARGETS.items() if target.files[0] in paths]

    def load_model(self) -> nn.Module:
        """The exported model; see `raysearch.load_model`.

        Raises:
            StorageError: there is none yet, or its files are damaged.
        """
        if self._store.storage.is_local:
            return load_model(self._store.storage.local_path("model"))
        with scratch_folder() as folder:
            return load_model(self.retrieve(folder) / "model")

    def verify(self, **options: Any) -> FolderCheck:
        """Check the files of the run's model by their hashes, and run every target in its runtime.

        Args:
            **options: of `raysearch.verify`: `batches`, `forward`, `factory`, `targets`.

        Raises:
            StorageError: there is no manifest; elsewhere than on this machine, the run is not finished.
            ExportError: a file differs from the manifest, or a target's outputs from the packed model's.
        """
        if self._store.storage.is_local:
            return verify_folder(self._store.storage.local_path("model"), **options)
        # The runtimes read files of this machine.
        with scratch_folder() as folder:
            return verify_folder(self.retrieve(folder) / "model", **options)

    def retrieve(self, to: Location) -> Path:
        """Copy a finished run to a local folder and verify every model file by its hash.

        Args:
            to: a folder that is empty, does not exist yet, or holds this same run.

        Returns:
            The folder; its `model/` is what `load_model` takes.

        Raises:
            StorageError: the run is not finished, or a file differs from its hash.
        """
        return copy_run(self._store, to)

    @contextmanager
    def _inputs(self, task: Task | str | None, changes: Mapping[str, Mapping[str, Any]]) -> Iterator[Inputs]:
        """The run's inputs again, checked to be the same; threads are pinned while they are used.

        Args:
            task: the task of the run, or None for the one that it names.
            changes: section → settings that do not change what was measured, such as the workers.
        """
        record = self._store.open()["config"]
        if task is None:
            task = str(record["task"])
            if ":" not in task:
                raise TaskError(
                    f"the run '{self.run_id}' was started with a Task object ({task}); pass it again as "
                    "task=."
                )
        settings = {name: value for name, value in record.items() if name not in STARTED}
        settings.setdefault("rounding", {"method": "nearest"})
        for name, values in changes.items():
            settings[name] = {**settings[name], **values}
        config = load_config(overrides=settings)
        seed = derive_seed(config.seed, "task")
        with process_as_found(), pinned_threads(config.cluster.threads), seeded(seed):
            loaded = load_task(task)
            with plain_modes(), pinned_threads(config.cluster.threads):
                inputs = check_inputs(loaded, config, record["budget"])
                self._store.check_same(record, inputs.fingerprints)
                yield inputs


def _budgets(budget: str | Sequence[str]) -> tuple[Budget, ...]:
    return parse_budgets((budget,) if isinstance(budget, str) else budget)


def load_run(run: Location, storage: Location | None = None) -> SavedRun:
    """A run that was started before, by this process or another.

    Args:
        run: a run id, or the path or URI of a run's folder.
        storage: where runs are; needed for a bare run id.

    Raises:
        StorageError: there is no such run.
    """
    return SavedRun(resolve_run(run, storage))
