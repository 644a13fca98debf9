"""What a report is made of: the records of a run, as far as it has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raysearch.artifacts import RunStore, codecs, current_status
from raysearch.records import (
    BitAssignment,
    Budget,
    ExportManifest,
    FineTuneResult,
    QuantizerSetup,
    RunResult,
    RunStatus,
    SearchResult,
    SearchTrial,
    SensitivityTable,
    parse_budgets,
)


@dataclass(frozen=True)
class ReportRecords:
    """The records of one run; a section of the page without its record is left out.

    Attributes:
        run_id: the run.
        setup: where the quantizers are; None where the run has not come so far.
        result: the answer; its `report` is not used.
        status: how far the run is.
        search: the trials and the winner.
        sensitivity: traces and responses.
        fine_tune: the training's history.
        manifest: the exported files.
        metrics: "float" and "quantized" → metric → value; by default those of the result.
        started: `run.json`: settings, hashes and versions.
        uri: where the run is.
    """

    run_id: str
    setup: QuantizerSetup | None = None
    result: RunResult | None = None
    status: RunStatus | None = None
    search: SearchResult | None = None
    sensitivity: SensitivityTable | None = None
    fine_tune: FineTuneResult | None = None
    manifest: ExportManifest | None = None
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    started: Mapping[str, Any] = field(default_factory=dict)
    uri: str = ""

    @classmethod
    def load(cls, store: RunStore) -> ReportRecords:
        """What is there of a run, finished or not.

        Raises:
            StorageError: there is no run, or a record is damaged.
        """
        started = store.open()
        return cls(
            run_id=store.run_id,
            setup=store.load(codecs.SETUP) if store.has(codecs.SETUP) else None,
            result=store.load(codecs.RESULT) if store.has(codecs.RESULT) else None,
            status=current_status(store) if store.has(codecs.STATUS) else None,
            search=store.load(codecs.SEARCH) if store.has(codecs.SEARCH) else None,
            sensitivity=store.load(codecs.SENSITIVITY) if store.has(codecs.SENSITIVITY) else None,
            fine_tune=store.load(codecs.FINE_TUNE) if store.has(codecs.FINE_TUNE) else None,
            manifest=store.load(codecs.MANIFEST) if store.has(codecs.MANIFEST) else None,
            metrics=store.load(codecs.METRICS) if store.has(codecs.METRICS) else {},
            started=started,
            uri=store.uri,
        )

    @property
    def chosen(self) -> SearchTrial | None:
        """The trial whose assignment is deployed: the best finalist where there were any; None before."""
        if self.search is None:
            return None
        if self.result is None or not self.result.finalists:
            return self.search.best
        number = self.result.finalists[0]["trial"]
        return next(trial for trial in self.search.trials if trial.number == number)

    @property
    def assignment(self) -> BitAssignment | None:
        """What was chosen; None before the end of the search."""
        if self.result is not None:
            return BitAssignment(self.result.assignment)
        return None if self.chosen is None else self.chosen.assignment

    @property
    def seconds(self) -> Mapping[str, float]:
        """Stage → seconds, of a run that still goes as well."""
        if self.result is not None:
            return self.result.seconds
        return {} if self.status is None else self.status.seconds

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets as numbers; none of a run that asks for the least cost alone."""
        return parse_budgets(self.budget) if self.budget else ()

    @property
    def budget(self) -> tuple[str, ...]:
        """The expressions as given."""
        if self.result is not None:
            return self.result.budget
        return tuple(self.started.get("config", {}).get("budget", ()))
