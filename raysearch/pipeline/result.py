"""The end of a walk: the result's record and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raysearch.artifacts import RunStore, codecs
from raysearch.errors import ConfigError
from raysearch.pipeline.inputs import Inputs
from raysearch.records import (
    ExportManifest,
    FineTuneResult,
    LeastCost,
    RunResult,
    SearchResult,
    SensitivityTable,
    drop_of,
)
from raysearch.reporting import render_report

NO_VALIDATION = (
    "The task has no validation data: trials, metrics and the surrogates' agreement rest on the calibration "
    "samples, so they look better than on new data."
)


def conclude(
    inputs: Inputs,
    store: RunStore,
    seconds: Mapping[str, float],
    *,
    table: SensitivityTable,
    found: SearchResult,
    tuned: FineTuneResult,
    metrics: Mapping[str, Mapping[str, float]],
    manifest: ExportManifest,
) -> RunResult:
    """Save the report and the result, and return the result; without the report's packages it says so.

    Args:
        inputs: the run's.
        store: the run's folder.
        seconds: time by stage.
        table: what was measured.
        found: what the search chose.
        tuned: the training.
        metrics: of the float and the quantized model.
        manifest: the exported files.
    """
    seen = "" if inputs.task.validation is not None else NO_VALIDATION
    least = _trained_least_cost(inputs, store, metrics)
    told = () if least is None else (least.describe(),)
    notes = tuple(note for note in (*told, seen, tuned.skipped, *manifest.notes) if note)
    result = RunResult(
        run_id=store.run_id,
        storage=store.uri,
        budget=tuple(budget.text for budget in inputs.budgets),
        assignment=found.best.assignment.bits,
        costs=found.best.costs,
        float_metrics=metrics["float"],
        quantized_metrics=metrics["quantized"],
        model_dir=f"{store.uri}/model",
        report="",
        seconds=dict(seconds),
        notes=notes,
        front=front_rows(found) if inputs.config.search.front != "none" else (),
        least_cost={} if least is None else least.as_dict(),
    )
    try:
        page = render_report(
            result,
            inputs.setup,
            found,
            sensitivity=table,
            fine_tune=tuned,
            manifest=manifest,
            metrics=metrics,
        )
        store.save(codecs.REPORT, page)
        result = replace(result, report=f"{store.uri}/report.html")
    except ConfigError as error:
        result = replace(result, notes=(*notes, str(error)))
    store.save(codecs.RESULT, result)
    return result


def _trained_least_cost(
    inputs: Inputs, store: RunStore, metrics: Mapping[str, Mapping[str, float]]
) -> LeastCost | None:
    settings = inputs.config.search
    if settings.drop is None:
        return None
    before, after = (metrics[model][settings.measured] for model in ("float", "quantized"))
    return replace(store.load(codecs.LEAST_COST), trained_drop=drop_of(after, before, settings.maximize))


def front_rows(found: SearchResult) -> tuple[dict[str, Any], ...]:
    """The front's trials as plain values, by cost."""
    return tuple(
        {
            "trial": trial.number,
            "value": trial.value,
            "costs": dict(trial.costs),
            "assignment": dict(trial.assignment.bits),
        }
        for trial in found.front
    )
