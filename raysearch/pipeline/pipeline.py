"""The order of the stages; each stage's record is saved when it ends, and read instead when it is there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Generic, ParamSpec, TypeVar

from torch import nn

from raysearch.artifacts import RunStore, UnitLog, codecs
from raysearch.artifacts.codecs import Codec, Metrics
from raysearch.artifacts.trial_blocks import TrialBlocks
from raysearch.blockwise import StoredRanges, pass_blocks
from raysearch.cluster.pool import Pool
from raysearch.determinism import pinned_threads
from raysearch.errors import DamagedFileError
from raysearch.evaluation import DataSet
from raysearch.pipeline.baselines import Baselines
from raysearch.pipeline.finalists import compare_finalists
from raysearch.pipeline.inputs import Inputs
from raysearch.pipeline.pools import Fleet, OpenPool
from raysearch.pipeline.progress import Progress
from raysearch.pipeline.result import StageRecords, save_result
from raysearch.pipeline.stages import (
    BLOCKS,
    block_files,
    calibrate_ranges,
    evaluate_both,
    export,
    has_own_responses,
    make_objective,
    make_recipe,
    refine_winner,
    round_calibrated,
    search_shards,
    strip_checkpoint,
    worker_replica,
)
from raysearch.records import (
    BitAssignment,
    ExportManifest,
    Finalists,
    FineTuneResult,
    RangeTable,
    Refinement,
    RoundingTable,
    RunResult,
    SearchResult,
    SearchTrial,
    SensitivityTable,
    chosen_trial,
)
from raysearch.search import (
    Race,
    ShardValues,
    TrialLog,
    minimize_cost,
    search_assignment,
)
from raysearch.sensitivity import measure_sensitivity
from raysearch.temporary import scratch_folder
from raysearch.training import fine_tune, forget_checkpoints
from raysearch.training.loggers import logged

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class Stage(Generic[T]):
    """What the pipeline must know of a stage, besides the method that computes it.

    Attributes:
        name: as the run's status tells it.
        record: what the stage gives.
        parts: the names under which its finished units are kept until the record is saved.
        settings: the sections of the run's record on which it depends, besides those of the stages before it.
    """

    name: str
    record: Codec[T]
    parts: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


CALIBRATION = Stage(
    "calibration", codecs.RANGES, ("calibration",), ("seed", "placement", "calibration", "cluster")
)
ROUNDING = Stage("rounding", codecs.ROUNDING, ("rounding",), ("rounding", "objective"))
SENSITIVITY = Stage(
    "sensitivity",
    codecs.SENSITIVITY,
    ("sensitivity-traces", "sensitivity-perturbations", "sensitivity-responses"),
    ("objective", "sensitivity", "validation"),
)
SEARCH = Stage("search", codecs.SEARCH, ("search",), ("search", "budget"))
FINALISTS = Stage("finalists", codecs.FINALISTS, ("finalists",), ("training",))
REFINEMENT = Stage(
    "refinement", codecs.REFINEMENT, ("refinement-sequential", "refinement-candidates"), ("rounding",)
)
TRAINING = Stage("training", codecs.FINE_TUNE)
EVALUATION = Stage("evaluation", codecs.METRICS)
EXPORT = Stage("export", codecs.MANIFEST)

STATES = "states"
"""The part of each stage in which hidden states are made, where workers hold one block at a time."""


class Pipeline:
    """One run: its inputs, its folder, its progress, and the fleet that its stages share.

    Args:
        inputs: checked.
        store: the run's folder.
        progress: keeps the run's status.
        open_pool: starts the workers.
        on_ray: whether training runs on Ray Train workers, else in this process.
        graphs: what the preflight captured, for the export.
    """

    def __init__(
        self,
        inputs: Inputs,
        store: RunStore,
        progress: Progress,
        open_pool: OpenPool,
        *,
        on_ray: bool,
        graphs: dict[str, Any] | None = None,
    ) -> None:
        self.inputs = inputs
        self.store = store
        self.progress = progress
        self.on_ray = on_ray
        self._graphs = graphs
        self._shards, self._per_sample = search_shards(inputs)
        self._log = UnitLog(store)
        self._trials = TrialBlocks(store)
        self._num_told = 0
        self._files = block_files(store)

        def open_fleet() -> Pool:
            return open_pool(worker_replica(inputs, self._shards, self._files), progress.remark)

        self._fleet = Fleet(open_fleet, self._log, progress)

    def run(self) -> RunResult:
        """Go from the first stage that has no record to the result."""
        result = self._saved(codecs.RESULT)
        if result is not None:
            return result
        with pinned_threads(self.inputs.config.cluster.threads):
            return self._run_stages()

    def _pass_blocks(self, data: DataSet, num_shards: int) -> None:
        """Where workers hold one block at a time: have the float hidden states that they start from."""
        if self.inputs.chain is None:
            return
        # The files say what is there; a unit that was logged in an earlier try says nothing.
        self._log.clear(STATES)
        pass_blocks(self._fleet.pool(STATES), self.inputs.chain, self._files, data, num_shards)
        self._log.clear(STATES)

    def _sent(self, ranges: RangeTable) -> RangeTable:
        """Ranges as workers are sent them: where they hold one block at a time, they read them with it."""
        if self.inputs.chain is None or isinstance(ranges, StoredRanges):
            return ranges
        return StoredRanges.store(ranges, self.inputs.chain, self._files)

    def _run_stages(self) -> RunResult:
        with closing(self._fleet):
            self.store.save(codecs.SETUP, self.inputs.setup)
            rounded = ranges = self._round(self._complete(CALIBRATION, self._calibrate))
            table = self._complete(SENSITIVITY, self._measure, ranges)
            search = self._complete(SEARCH, self._search, table, ranges)
            self._trials.clear()
            finalists = self._compare_finalists(ranges, search)
            assignment = chosen_trial(search, finalists).assignment
            refinement = self._refine(ranges, assignment)
        self.store.storage.delete_dir(BLOCKS)
        # The fleet is released before training, which may need its CPUs and GPUs.
        training, checkpoint = self._train(ranges, assignment, refinement)
        if refinement is not None:
            ranges = refinement.put_into(ranges)
        stripped = strip_checkpoint(self.inputs, ranges, assignment, checkpoint)
        is_changed = refinement is not None or not training.skipped
        baselines = Baselines(search, assignment, rounded, is_changed)
        metrics = self._complete(EVALUATION, self._evaluate, stripped, baselines)
        manifest = self._complete(EXPORT, self._export, stripped, assignment)
        records = StageRecords(table, search, training, metrics, manifest, finalists)
        return save_result(self.inputs, self.store, self.progress.seconds, records)

    def _complete(self, stage: Stage[T], compute: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read a stage's record; where there is none, compute it, save it, and forget its units.

        Args:
            stage: its name, record and parts.
            compute: the stage.
            *args: its arguments.
            **kwargs: the same.
        """
        saved = self._saved(stage.record)
        if saved is not None:
            return saved
        with self.progress.stage(stage.name):
            record = compute(*args, **kwargs)
        self.store.save(stage.record, record)
        # Only now: until the record is there, a run that is killed goes on with the units.
        for part in stage.parts:
            self._log.clear(part)
        return record

    def _saved(self, codec: Codec[T]) -> T | None:
        """A record that is there and whole; a damaged one is set aside, since it can be computed again."""
        if not self.store.has(codec):
            return None
        try:
            record = self.store.load(codec)
            if isinstance(record, ExportManifest):
                self.store.check_model(record)
            return record
        except DamagedFileError as error:
            self._set_aside(codec, error)
            return None

    def _set_aside(self, codec: Codec[T], error: DamagedFileError) -> None:
        names = ", ".join(self.store.set_aside(codec))
        warnings.warn(f"{error} What was there is kept as {names}; it is computed again.", stacklevel=2)

    def _calibrate(self) -> RangeTable:
        return calibrate_ranges(self.inputs, self._fleet.pool("calibration"))

    def _round(self, ranges: RangeTable) -> RangeTable:
        """Ranges with the scales and codes that the rounding method chose; nearest codes need no stage."""
        if self.inputs.config.rounding.method == "nearest":
            return ranges
        return self._complete(ROUNDING, self._round_weights, ranges).put_into(ranges)

    def _round_weights(self, ranges: RangeTable) -> RoundingTable:
        self._pass_blocks(DataSet.CALIBRATION, len(self.inputs.samples.calibration))
        return round_calibrated(self.inputs, ranges, self._fleet.pool("rounding"))

    def _measure(self, ranges: RangeTable) -> SensitivityTable:
        ranges = self._sent(ranges)
        samples = self.inputs.samples
        other = samples.other_than_calibration()
        num_shards = {
            DataSet.CALIBRATION: len(samples.calibration),
            DataSet.TRACES: len(samples.traces),
            DataSet.RESPONSES: len(other) if has_own_responses(self.inputs, self.store) else 0,
        }
        of_responses = DataSet.RESPONSES if num_shards[DataSet.RESPONSES] else DataSet.CALIBRATION
        self._pass_blocks(of_responses, num_shards[of_responses])

        def part_pool(part: str) -> Pool:
            return self._fleet.pool(f"sensitivity-{part}")

        table = measure_sensitivity(
            self.inputs.setup,
            ranges,
            part_pool,
            num_shards,
            self.inputs.config.sensitivity,
            seed=self.inputs.config.seed,
            cache_bytes=self.inputs.cache_bytes,
        )
        fingerprints = list(self.inputs.fingerprints.values())
        if ranges.rounded:
            fingerprints.append(ranges.digest())
        return replace(table, fingerprint=":".join(fingerprints))

    def _search(self, table: SensitivityTable, ranges: RangeTable) -> SearchResult:
        settings = self.inputs.search

        def measure(
            assignments: Mapping[int, BitAssignment], shards: Sequence[int]
        ) -> Mapping[int, Mapping[int, ShardValues]]:
            # The fleet starts with the first measurement: a resumed search may have none left.
            nonlocal ranges
            ranges = self._sent(ranges)
            self._pass_blocks(DataSet.SEARCH, len(self._shards))
            pool = self._fleet.pool("search")
            objective = make_objective(self.inputs, ranges, pool, self._per_sample)
            return objective(assignments, shards)

        race = Race(measure, len(self._shards), settings.racing_error, settings.maximize)
        if settings.minimized_kind is not None:
            return self._least_cost(table, race)
        return search_assignment(
            table,
            self.inputs.setup,
            self.inputs.budgets,
            race,
            settings,
            seed=self.inputs.config.seed,
            log=TrialLog(self._earlier_trials(), self._save_trials),
        )

    def _save_trials(self, trials: tuple[SearchTrial, ...]) -> None:
        self._trials.save(trials)
        for trial in trials[self._num_told :]:
            self.progress.followers.tell("on_trial", trial, self.inputs.search.measured)
        self._num_told = len(trials)
        values = [trial.value for trial in trials if trial.is_complete]
        if values:
            search = self.inputs.search
            better = max if search.maximize else min
            self.progress.best(search.measured, better(values))

    def _earlier_trials(self) -> tuple[SearchTrial, ...]:
        """What an interrupted search measured; empty when no batch was finished yet."""
        trials = self._trials.load(self._set_aside)
        # Earlier versions wrote all trials into one file after every batch.
        trials = trials or self._saved(codecs.TRIALS) or ()
        self._num_told = len(trials)
        return trials

    def _least_cost(self, table: SensitivityTable, race: Race) -> SearchResult:
        result, least = minimize_cost(
            table,
            self.inputs.setup,
            self.inputs.budgets,
            race,
            self.inputs.search,
            seed=self.inputs.config.seed,
            on_batch=self._save_trials,
        )
        self.store.save(codecs.LEAST_COST, least)
        return result

    def _train(
        self, ranges: RangeTable, assignment: BitAssignment, refinement: Refinement | None
    ) -> tuple[FineTuneResult, bytes]:
        """What training gave, and its best state; a damaged one is made again."""
        try:
            return self._trained(ranges, assignment, refinement)
        except DamagedFileError as error:
            self._set_aside(codecs.FINE_TUNE, error)
        return self._trained(ranges, assignment, refinement)

    def _trained(
        self, ranges: RangeTable, assignment: BitAssignment, refinement: Refinement | None
    ) -> tuple[FineTuneResult, bytes]:
        training = self._complete(TRAINING, self._fine_tune, ranges, assignment, refinement)
        forget_checkpoints(self.store.storage.child("checkpoints"))
        return training, self.store.load_checkpoint(training.checkpoint)

    def _compare_finalists(self, ranges: RangeTable, search: SearchResult) -> Finalists | None:
        """Short trainings of the best assignments; None where none are asked for, or `--trial` named one."""
        is_taken = self.store.has(codecs.REUSED) and self.store.load(codecs.REUSED).trial is not None
        if not self.inputs.search.finalists_trained or is_taken:
            return None
        return self._complete(FINALISTS, self._train_finalists, ranges, search)

    def _train_finalists(self, ranges: RangeTable, search: SearchResult) -> Finalists:
        checkpoints = self.store.storage.child("checkpoints")
        return compare_finalists(self.inputs, ranges, search, self._fleet.pool("finalists"), checkpoints)

    def _refine(self, ranges: RangeTable, assignment: BitAssignment) -> Refinement | None:
        """The winner refined; None where nothing is tried, or weights take the nearest codes."""
        settings = self.inputs.config.rounding
        if settings.method == "nearest" or not settings.refine:
            return None
        return self._complete(REFINEMENT, self._refine_winner, ranges, assignment)

    def _refine_winner(self, ranges: RangeTable, assignment: BitAssignment) -> Refinement:
        def part_pool(part: str) -> Pool:
            return self._fleet.pool(f"refinement-{part}")

        return refine_winner(self.inputs, ranges, assignment, part_pool, len(self._shards))

    def _fine_tune(
        self, ranges: RangeTable, assignment: BitAssignment, refinement: Refinement | None
    ) -> FineTuneResult:
        recipe = make_recipe(self.inputs, ranges, assignment, refinement)
        trains = recipe.train is not None and not recipe.settings.is_off
        with logged(self.progress.training, recipe.settings.loggers, self.store.storage) as tell:
            return fine_tune(
                recipe,
                self.store.save_checkpoint,
                on_ray=self.on_ray and trains,
                storage=self.store.storage.child("checkpoints"),
                tell=tell,
            )

    def _evaluate(self, stripped: nn.Module, baselines: Baselines) -> Metrics:
        beside: Metrics = {}
        if self.inputs.config.validation.baselines:
            beside = baselines.measure(self.inputs)
        return {**evaluate_both(self.inputs, stripped), **beside}

    def _export(self, stripped: nn.Module, assignment: BitAssignment) -> ExportManifest:
        with scratch_folder() as folder:
            run_id, graphs = self.store.run_id, self._graphs
            manifest = export(self.inputs, stripped, assignment, folder, run_id, graphs)
            self.store.save_model(folder)
        return manifest
