"""The tables of the report: columns, and rows of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raysearch.records import (
    COST_KINDS,
    BitAssignment,
    CostModel,
    ExportManifest,
    QuantizerSetup,
    RunResult,
    SearchResult,
    SearchTrial,
    SensitivityTable,
)
from raysearch.records.costs.text import MISSING, cost, cost_name, duration, number, signed
from raysearch.reporting.answer import value_text


@dataclass(frozen=True)
class Row:
    """A row's name and the text of its cells."""

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """A table; the first column is that of the names.

    Attributes:
        columns: their names.
        rows: as many cells each as there are columns besides the names.
        title: above the table; "" for none.
        caption: below it.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    title: str = ""
    caption: str = ""


def summary_grid(setup: QuantizerSetup, result: RunResult) -> Grid:
    """Metrics and costs of the float and of the quantized model, with what stands beside it.

    Args:
        setup: what the float model's costs are of.
        result: metrics, the quantized model's costs, and the baselines.
    """
    metrics = {"float": result.float_metrics, "quantized": result.quantized_metrics}
    metrics |= {f"test_{model}": values for model, values in result.test_metrics.items()}
    errors = result.standard_errors
    baselines = result.baselines.values()
    rows = _metric_rows("", _Pair.of(metrics, errors, ""), list(baselines))
    nothing = [dict[str, float]()] * len(baselines)
    rows += _metric_rows("test ", _Pair.of(metrics, errors, "test_"), nothing)
    # An assignment that quantizes nothing costs what the float model costs.
    float_costs = CostModel(setup).costs(BitAssignment({}))
    for kind, value in result.costs.items():
        if kind == "act_bits" and not setup.of_kind("activation"):
            continue
        rows.append(_cost_row(kind, float_costs.get(kind), value, len(baselines)))
    return Grid(("", "float", "quantized", "change", *result.baselines), tuple(rows))


Values = Mapping[str, float]
"""Metric → value."""


@dataclass(frozen=True)
class _Pair:
    """Metrics of the float and of the quantized model on the same data, with their standard errors."""

    before: Values
    after: Values
    before_errors: Values
    after_errors: Values

    @classmethod
    def of(cls, metrics: Mapping[str, Values], errors: Mapping[str, Values], prefix: str) -> _Pair:
        """Of one data set.

        Args:
            metrics: model → metric → value.
            errors: model → metric → standard error.
            prefix: of the models' names there.
        """
        names = (f"{prefix}float", f"{prefix}quantized")
        before, after = (metrics.get(name, {}) for name in names)
        before_errors, after_errors = (errors.get(name, {}) for name in names)
        return cls(before, after, before_errors, after_errors)


def _metric_rows(prefix: str, pair: _Pair, baselines: Sequence[Values]) -> list[Row]:
    """A row a metric.

    Args:
        prefix: of its name.
        pair: of the float and of the quantized model.
        baselines: of what stands between the two.
    """
    rows: list[Row] = []
    for name in dict.fromkeys([*pair.before, *pair.after]):
        change = MISSING
        if name in pair.before and name in pair.after:
            change = signed(pair.after[name] - pair.before[name])
        beside = [number(values.get(name)) for values in baselines]
        before = value_text(pair.before, pair.before_errors, name)
        after = value_text(pair.after, pair.after_errors, name)
        rows.append(Row(f"{prefix}{name}", (before, after, change, *beside)))
    return rows


def _cost_row(kind: str, float_value: float | None, value: float, num_baselines: int) -> Row:
    float_text = MISSING if float_value is None else cost(kind, float_value)
    change = MISSING
    if float_value and value:
        # One that may not fall below a budget is the better the greater it is.
        is_gain = kind in COST_KINDS and COST_KINDS[kind].at_least
        change = f"× {number(value / float_value, 3)}" if is_gain else f"÷ {number(float_value / value, 3)}"
    return Row(cost_name(kind), (float_text, cost(kind, value), change, *[MISSING] * num_baselines))


def excess_grid(chosen: SearchTrial) -> Grid:
    """How much of each budget the chosen assignment uses."""
    rows = (Row(text, (f"{1 + excess:.2%}",)) for text, excess in chosen.excess.items())
    return Grid(("budget", "used"), tuple(rows))


def option_grid(table: SensitivityTable) -> Grid:
    """Every option with what it alone does."""
    rows = (
        Row(e.group, (str(e.scheme), number(e.response), number(e.divergence), number(e.perturbation)))
        for e in table.effects.values()
    )
    return Grid(("group", "bits", "response", "measured divergence", "perturbation"), tuple(rows))


def sources_grid(search: SearchResult) -> Grid:
    """What the chosen assignment was compared with, best first, and by how much it is better."""
    sign = -1 if search.maximize else 1
    margins = search.margins()
    ordered = sorted(search.reasons.items(), key=lambda item: (sign * item[1], item[0]))
    rows = tuple(Row(name, (number(value), number(margins[name]))) for name, value in ordered)
    return Grid(("source", f"measured {search.objective}", "chosen is better by"), rows)


def agreement_grid(search: SearchResult) -> Grid:
    """How well each surrogate ranks what was measured, best first."""
    ordered = sorted(search.agreement.items(), key=lambda item: (math.isnan(item[1]), -item[1], item[0]))
    rows = tuple(Row(name, (number(value),)) for name, value in ordered)
    return Grid(("surrogate", "rank correlation"), rows)


def finalists_grid(finalists: Sequence[Mapping[str, Any]]) -> Grid:
    """What short trainings made of the best assignments, best first; each metric before and after.

    Args:
        finalists: see `RunResult`.
    """
    names = list(dict.fromkeys(name for entry in finalists for name in entry["after"]))
    rows = []
    for entry in finalists:
        cells = [
            f"{number(entry['before'].get(name))} → {number(entry['after'].get(name))}" for name in names
        ]
        if entry["failure"]:
            cells = ["given up", *[MISSING] * (len(names) - 1)]
        rows.append(Row(f"trial {entry['trial']}", (number(entry["place"]), number(entry["value"]), *cells)))
    columns = ("finalist", "place in the search", "measured there", *names)
    return Grid(columns, tuple(rows), title="finalists, before → after a short training")


def checks_grid(manifest: ExportManifest) -> Grid:
    """How each target's output differs from the stripped module."""
    rows = (
        Row(
            check.target,
            (
                check.runtime,
                number(check.max_abs_difference),
                number(check.mean_abs_difference),
                f"{check.agreement:.2%}",
                number(check.num_samples),
            ),
        )
        for check in manifest.checks
    )
    columns = ("target", "runtime", "largest difference", "mean difference", "same answer", "samples")
    return Grid(columns, tuple(rows))


def times_grid(seconds_by_stage: Mapping[str, float]) -> Grid:
    """Seconds per stage and in all."""
    rows = [Row(stage, (duration(seconds),)) for stage, seconds in seconds_by_stage.items()]
    total = duration(sum(seconds_by_stage.values()))
    return Grid(("stage", "time"), (*rows, Row("in all", (total,))))
