"""The order of the walk; every stage's record is saved when it ends and read instead when it is there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from raysearch.artifacts import RunStore, UnitLog, codecs
from raysearch.calibration import calibrate
from raysearch.cluster.pool import Pool
from raysearch.cluster.resuming import ResumingPool
from raysearch.determinism import pinned_threads
from raysearch.evaluation import Replica
from raysearch.pipeline.inputs import Inputs
from raysearch.pipeline.progress import Progress
from raysearch.pipeline.result import conclude
from raysearch.pipeline.stages import (
    export,
    make_objective,
    make_recipe,
    make_replica,
    search_shards,
    strip_checkpoint,
    validate,
)
from raysearch.records import (
    BitAssignment,
    ExportManifest,
    FineTuneResult,
    MaxDrop,
    RangeTable,
    RunResult,
    SearchResult,
    SearchTrial,
    SensitivityTable,
)
from raysearch.search import (
    MeasureShards,
    Race,
    ShardValues,
    minimize_cost,
    search_assignment,
    write_journal,
)
from raysearch.sensitivity import measure_sensitivity
from raysearch.training import fine_tune

PoolMaker = Callable[[Replica], Pool]


@dataclass
class Walk:
    """One run: its inputs, its folder, its progress, and the fleet that all stages share."""

    inputs: Inputs
    store: RunStore
    progress: Progress
    make_pool: PoolMaker
    on_ray: bool

    def __post_init__(self) -> None:
        self._log = UnitLog(self.store)
        self._stack = ExitStack()
        self._pool: Pool | None = None
        self._shards, self._per_sample = search_shards(self.inputs)

    def run(self) -> RunResult:
        """Walk from the first stage that has no record to the result."""
        if self.store.has(codecs.RESULT):
            return self.store.load(codecs.RESULT)
        with pinned_threads(self.inputs.config.cluster.threads):
            return self._walk()

    def _walk(self) -> RunResult:
        with self._stack:
            self.store.save(codecs.SETUP, self.inputs.setup)
            ranges = self._calibrate()
            table = self._measure(ranges)
            found = self._search(table, ranges)
        # The fleet is released before training, which may need its CPUs and GPUs.
        tuned = self._fine_tune(ranges, found.best.assignment)
        stripped = self._strip(ranges, found.best.assignment, tuned)
        metrics = self._evaluate(stripped)
        manifest = self._export(stripped, found.best.assignment)
        return conclude(
            self.inputs,
            self.store,
            self.progress.seconds,
            table=table,
            found=found,
            tuned=tuned,
            metrics=metrics,
            manifest=manifest,
        )

    def pool(self, part: str) -> Pool:
        """The fleet, remembering the units of one part of a stage."""
        if self._pool is None:
            self._pool = self.make_pool(make_replica(self.inputs, self._shards))
            self._stack.callback(self._pool.close)

        def tell(done: int, total: int) -> None:
            self.progress.units(part, done, total)

        return ResumingPool(self._pool, self._log, part, tell)

    def _calibrate(self) -> RangeTable:
        if self.store.has(codecs.RANGES):
            return self.store.load(codecs.RANGES)
        settings = self.inputs.config.calibration
        with self.progress.stage("calibration"):
            ranges = calibrate(
                self.inputs.setup,
                self.pool("calibration"),
                len(self.inputs.calibration),
                weights=settings.weights,
                activations=settings.activations,
                overrides=settings.overrides,
                percentiles=settings.percentiles,
                reference=settings.reference,
            )
        self.store.save(codecs.RANGES, ranges)
        self._log.clear("calibration")
        return ranges

    def _measure(self, ranges: RangeTable) -> SensitivityTable:
        if self.store.has(codecs.SENSITIVITY):
            return self.store.load(codecs.SENSITIVITY)
        settings = self.inputs.config.sensitivity
        parts = ("traces", "perturbations", "responses")
        with self.progress.stage("sensitivity"):
            table = measure_sensitivity(
                self.inputs.setup,
                ranges,
                lambda part: self.pool(f"sensitivity-{part}"),
                len(self.inputs.calibration),
                estimator=settings.estimator,
                relative_error=settings.relative_error,
                max_draws=settings.max_draws,
                draw_chunk=settings.draw_chunk,
                option_chunk=settings.option_chunk,
                sketch_size=settings.sketch_size,
                cache_bytes=self.inputs.config.cluster.cache_bytes,
                trace_loss=settings.trace_loss,
                seed=self.inputs.config.seed,
                fingerprint=":".join(self.inputs.fingerprints.values()),
                num_trace_shards=len(self.inputs.traces),
                importance_draws=settings.importance_draws,
            )
        self.store.save(codecs.SENSITIVITY, table)
        for part in parts:
            self._log.clear(f"sensitivity-{part}")
        return table

    def _search(self, table: SensitivityTable, ranges: RangeTable) -> SearchResult:
        if self.store.has(codecs.SEARCH):
            return self.store.load(codecs.SEARCH)
        settings = self.inputs.config.search

        def measure(
            assignments: Mapping[int, BitAssignment], shards: Sequence[int]
        ) -> Mapping[int, Mapping[int, ShardValues]]:
            # The fleet starts with the first measurement: a resumed search may have none left.
            pool = self.pool("search")
            return make_objective(self.inputs, ranges, pool, self._per_sample)(assignments, shards)

        front = None if settings.front == "none" else settings.front
        options: dict[str, Any] = {
            "num_trials": settings.num_trials,
            "batch_size": settings.batch_size,
            "surrogate": settings.surrogate,
            "sampler": settings.sampler,
            "seed": self.inputs.config.seed,
            "on_batch": partial(self.store.save, codecs.TRIALS),
            "enqueue": [BitAssignment(bits) for bits in settings.enqueue],
            "maximize": settings.maximize,
            "num_finalists": settings.num_finalists,
        }
        with self.progress.stage("search"):
            found = (
                self._least_cost(table, measure, settings.drop, options)
                if settings.drop is not None
                else search_assignment(
                    table,
                    self.inputs.setup,
                    self.inputs.budgets,
                    Race(measure, len(self._shards), settings.racing_error, settings.maximize),
                    previous=self._earlier_trials(),
                    objective=settings.objective,
                    front=front,
                    **options,
                )
            )
            self._save_journal(found, front)
        self.store.save(codecs.SEARCH, found)
        self._log.clear("search")
        return found

    def _earlier_trials(self) -> tuple[SearchTrial, ...]:
        """What an interrupted search measured; empty when no batch was finished yet."""
        return self.store.load(codecs.TRIALS) if self.store.has(codecs.TRIALS) else ()

    def _least_cost(
        self, table: SensitivityTable, measure: MeasureShards, drop: MaxDrop, options: Mapping[str, Any]
    ) -> SearchResult:
        settings = self.inputs.config.search
        found, least = minimize_cost(
            table,
            self.inputs.setup,
            self.inputs.budgets,
            measure,
            len(self._shards),
            settings.minimize,
            drop,
            racing_error=settings.racing_error,
            **options,
        )
        self.store.save(codecs.LEAST_COST, least)
        return found

    def _save_journal(self, found: SearchResult, front: str | None) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "study.journal"
            write_journal(
                path,
                found.trials,
                self.inputs.setup,
                self.inputs.budgets,
                objective=found.objective,
                maximize=found.maximize,
                front=front,
            )
            self.store.storage.write_file("study.journal", path)

    def _fine_tune(self, ranges: RangeTable, assignment: BitAssignment) -> FineTuneResult:
        if self.store.has(codecs.FINE_TUNE):
            return self.store.load(codecs.FINE_TUNE)
        recipe = make_recipe(self.inputs, ranges, assignment)
        epochs = recipe.settings.epochs
        with self.progress.stage("training"):
            tuned = fine_tune(
                recipe,
                self.store.save_checkpoint,
                on_ray=self.on_ray and recipe.train is not None and epochs > 0,
                run_name="qat",
                storage_path=self.store.storage.child("checkpoints").uri,
                on_epoch=lambda epoch: self.progress.units("training", epoch, epochs),
            )
        self.store.save(codecs.FINE_TUNE, tuned)
        return tuned

    def _strip(self, ranges: RangeTable, assignment: BitAssignment, tuned: FineTuneResult) -> nn.Module:
        return strip_checkpoint(self.inputs, ranges, assignment, self.store.load_checkpoint(tuned.checkpoint))

    def _evaluate(self, stripped: nn.Module) -> Mapping[str, Mapping[str, float]]:
        if self.store.has(codecs.METRICS):
            return self.store.load(codecs.METRICS)
        with self.progress.stage("evaluation"):
            metrics = {
                "float": validate(self.inputs, self.inputs.task.model),
                "quantized": validate(self.inputs, stripped),
            }
        self.store.save(codecs.METRICS, metrics)
        return metrics

    def _export(self, stripped: nn.Module, assignment: BitAssignment) -> ExportManifest:
        if self.store.has(codecs.MANIFEST):
            return self.store.load(codecs.MANIFEST)
        with self.progress.stage("export"), tempfile.TemporaryDirectory() as folder:
            manifest = export(self.inputs, stripped, assignment, Path(folder), self.store.run_id)
            self.store.save_model(Path(folder))
        return manifest
