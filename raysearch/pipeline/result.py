"""The end of a run: the result's record and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from raysearch.artifacts import RunStore, codecs
from raysearch.artifacts.codecs import Metrics
from raysearch.errors import ConfigError
from raysearch.evaluation import batch_size
from raysearch.evaluation.metric import direction_of
from raysearch.pipeline.baselines import best_uniform
from raysearch.pipeline.direction import unlikely_gain
from raysearch.pipeline.inputs import Inputs, broken_promises
from raysearch.pipeline.stages import STDERR, TEST
from raysearch.records import (
    ExportManifest,
    Finalists,
    FineTuneResult,
    LeastCost,
    RunResult,
    SearchResult,
    SearchTrial,
    SensitivityTable,
    chosen_trial,
    drop_of,
)
from raysearch.records.rounding import RoundingTable
from raysearch.reporting import ReportRecords, render_report

MODELS = ("float", "quantized")
"""The metrics that every run has; the others are of baselines."""

NO_VALIDATION = (
    "The task has no validation data: trials, metrics and the surrogates' agreement rest on the calibration "
    "samples, so they look better than on new data."
)


@dataclass(frozen=True)
class StageRecords:
    """What the stages of a run gave.

    Attributes:
        table: what was measured.
        search: what the search chose.
        training: what training did.
        metrics: of the float and the quantized model.
        manifest: the exported files.
        finalists: what short trainings of the best assignments gave, where there were any.
    """

    table: SensitivityTable
    search: SearchResult
    training: FineTuneResult
    metrics: Metrics
    manifest: ExportManifest
    finalists: Finalists | None = None

    @property
    def chosen(self) -> SearchTrial:
        """The trial whose assignment is deployed."""
        return chosen_trial(self.search, self.finalists)


def save_result(
    inputs: Inputs, store: RunStore, seconds: Mapping[str, float], records: StageRecords
) -> RunResult:
    """Save the report and the result, and return the result; without the report's packages it says so.

    Args:
        inputs: the run's.
        store: the run's folder.
        seconds: time by stage.
        records: what the stages gave.
    """
    result = _make_result(inputs, store, seconds, records)
    try:
        result = save_report(store, result)
    except ConfigError as error:
        result = replace(result, notes=(*result.notes, str(error)))
    # Its presence says that the run is complete, so it comes last.
    store.save(codecs.RESULT, result)
    return result


def save_report(store: RunStore, result: RunResult) -> RunResult:
    """Save the HTML report, and return the result that says where it is; the caller saves that.

    Args:
        store: the run's folder, with the records of all stages.
        result: what the page is of.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    store.save(codecs.REPORT, render_report(replace(ReportRecords.load(store), result=result)))
    return replace(result, report=f"{store.uri}/{codecs.REPORT.files[0]}")


def _make_result(
    inputs: Inputs, store: RunStore, seconds: Mapping[str, float], records: StageRecords
) -> RunResult:
    best = records.chosen
    least = _trained_least_cost(inputs, store, records.metrics)
    front: tuple[dict[str, Any], ...] = ()
    if inputs.config.search.front_kind is not None:
        front = front_rows(records.search)
    return RunResult(
        run_id=store.run_id,
        storage=store.uri,
        budget=tuple(budget.text for budget in inputs.budgets),
        assignment=best.assignment.as_json,
        costs=best.costs,
        float_metrics=records.metrics["float"],
        quantized_metrics=records.metrics["quantized"],
        baselines=_baselines(records),
        model_dir=f"{store.uri}/model",
        report="",
        seconds=dict(seconds),
        notes=_notes(inputs, store, records, least),
        front=front,
        least_cost={} if least is None else least.as_dict(),
        test_metrics=_values(records.metrics, TEST),
        standard_errors=_errors(records.metrics),
        finalists=() if records.finalists is None else records.finalists.rows(),
    )


def _baselines(records: StageRecords) -> dict[str, Mapping[str, float]]:
    """What stands beside the answer, in the order in which it came about."""
    baselines = {name: values for name, values in records.metrics.items() if _is_baseline(name)}
    if len(records.training.history) > 1:
        baselines["before training"] = records.training.history[0].metrics
    return baselines


def _is_baseline(name: str) -> bool:
    return name not in MODELS and not name.startswith(TEST) and not name.endswith(STDERR)


def _values(metrics: Metrics, prefix: str) -> dict[str, Mapping[str, float]]:
    """Model → metric → value on the data of a prefix."""
    names = ("float", "quantized")
    return {name: metrics[f"{prefix}{name}"] for name in names if f"{prefix}{name}" in metrics}


def _errors(metrics: Metrics) -> dict[str, Mapping[str, float]]:
    """The standard errors by model and data, where there are any."""
    return {
        name.removesuffix(STDERR): values
        for name, values in metrics.items()
        if name.endswith(STDERR) and values
    }


def _notes(
    inputs: Inputs, store: RunStore, records: StageRecords, least: LeastCost | None
) -> tuple[str, ...]:
    """What a reader of the result should know, most important first.

    Args:
        inputs: the run's.
        store: the run's folder, which holds what was rounded.
        records: what the stages gave.
        least: the least cost, where it was asked for.
    """
    notes: list[str] = []
    if least is not None:
        notes.append(least.describe())
    uniform = best_uniform(records.search, inputs.setup)
    if uniform is not None and uniform[1] == records.chosen.assignment:
        notes.append(f"the answer is {uniform[0]}: nothing mixed within the budget measured better")
    if records.finalists is not None:
        notes.append(records.finalists.describe())
    notes.extend(_unlikely_gains(inputs, records.metrics, least))
    notes.extend(inputs.notes)
    if inputs.task.validation is None:
        notes.append(NO_VALIDATION)
    notes.extend(broken_promises(inputs.budgets, inputs.setup))
    if store.has(codecs.REUSED):
        notes.append(store.load(codecs.REUSED).describe())
    notes.extend(records.training.notes())
    if store.has(codecs.ROUNDING):
        table = store.load(codecs.ROUNDING)
        notes.extend(table.notes())
        notes.append(_of_responses(inputs, table))
    if store.has(codecs.REFINEMENT):
        notes.append(store.load(codecs.REFINEMENT).describe())
    notes.extend(records.manifest.notes)
    return tuple(note for note in notes if note)


def _of_responses(inputs: Inputs, table: RoundingTable) -> str:
    """On which samples responses were measured, where a weight was fitted to too few."""
    if not table.fitted_to_few() or inputs.samples.responses:
        return ""
    remedy = "set sensitivity.response_samples, or calibrate on more"
    if inputs.task.validation is None:
        return f"Responses make codes fitted to few vectors look better than they are: {remedy}."
    num_samples = sum(map(batch_size, inputs.samples.other_than_calibration()))
    return (
        f"Responses are of {num_samples} validation samples, since codes fitted to few vectors look good on "
        f"those. To keep validation data out of them, {remedy}."
    )


def _unlikely_gains(inputs: Inputs, metrics: Metrics, least: LeastCost | None) -> list[str]:
    """What is said of metrics that are better than the float model's by more than is to be expected."""
    search = inputs.search
    notes: list[str] = []
    for name, metric in inputs.task.metrics.items():
        direction = direction_of(name, metric)
        if name == search.measured:
            direction = "maximize" if search.maximize else "minimize"
        if direction is None:
            continue
        pairs = [(metrics["quantized"][name], metrics["float"][name])]
        if least is not None and least.metric == name:
            # Before training, which may well improve a model.
            pairs.insert(0, (least.value, least.float_value))
        said = [unlikely_gain(name, value, float_value, direction) for value, float_value in pairs]
        notes.extend([text for text in said if text][:1])
    return notes


def _trained_least_cost(inputs: Inputs, store: RunStore, metrics: Metrics) -> LeastCost | None:
    """The least cost with the drop of the trained model; None where no least cost was searched for."""
    search = inputs.search
    if search.drop is None:
        return None
    before = metrics["float"][search.measured]
    after = metrics["quantized"][search.measured]
    return replace(store.load(codecs.LEAST_COST), trained_drop=drop_of(after, before, search.maximize))


def front_rows(result: SearchResult) -> tuple[dict[str, Any], ...]:
    """The front's trials as plain values, by cost."""
    return tuple(
        {
            "trial": trial.number,
            "value": trial.value,
            "costs": dict(trial.costs),
            "assignment": trial.assignment.as_json,
        }
        for trial in result.front
    )
