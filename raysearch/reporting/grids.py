"""The tables of the report: columns, and rows of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raysearch.records import (
    BitAssignment,
    CostModel,
    ExportManifest,
    QuantizerSetup,
    RunResult,
    Scheme,
    SearchResult,
    SearchTrial,
    SensitivityTable,
)
from raysearch.reporting.format import MISSING, cost, cost_name, duration, number, signed


@dataclass(frozen=True)
class Row:
    """A row's name and the text of its cells."""

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """A table; the first column is that of the names."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def summary_grid(
    setup: QuantizerSetup, result: RunResult, metrics: Mapping[str, Mapping[str, float]]
) -> Grid:
    """Metrics and costs of the float and of the quantized model, with what stands beside it.

    Args:
        setup: what the float model's costs are of.
        result: the quantized model's costs, and the baselines' metrics.
        metrics: "float" and "quantized" → metric → value; on test data "test_float" and "test_quantized".
    """
    baselines = result.baselines.values()
    rows = _metric_rows("", metrics.get("float", {}), metrics.get("quantized", {}), list(baselines))
    nothing = [dict[str, float]()] * len(baselines)
    rows += _metric_rows("test ", metrics.get("test_float", {}), metrics.get("test_quantized", {}), nothing)
    # An assignment that quantizes nothing costs what the float model costs.
    float_costs = CostModel(setup).costs(BitAssignment({}))
    for kind, value in result.costs.items():
        if kind == "act_bits" and not setup.of_kind("activation"):
            continue
        rows.append(_cost_row(kind, float_costs.get(kind), value, len(baselines)))
    return Grid(("", "float", *result.baselines, "quantized", "change"), tuple(rows))


def _metric_rows(
    prefix: str,
    before: Mapping[str, float],
    after: Mapping[str, float],
    baselines: Sequence[Mapping[str, float]],
) -> list[Row]:
    """A row a metric.

    Args:
        prefix: of its name.
        before: of the float model.
        after: of the quantized model.
        baselines: of what stands between the two.
    """
    rows: list[Row] = []
    for name in dict.fromkeys([*before, *after]):
        float_value, value = before.get(name), after.get(name)
        change = MISSING
        if float_value is not None and value is not None:
            change = signed(value - float_value)
        beside = [number(values.get(name)) for values in baselines]
        rows.append(Row(f"{prefix}{name}", (number(float_value), *beside, number(value), change)))
    return rows


def _cost_row(kind: str, float_value: float | None, value: float, num_baselines: int) -> Row:
    float_text = MISSING if float_value is None else cost(kind, float_value)
    change = f"÷ {float_value / value:.2f}" if float_value and value else MISSING
    return Row(cost_name(kind), (float_text, *[MISSING] * num_baselines, cost(kind, value), change))


def excess_grid(chosen: SearchTrial) -> Grid:
    """How much of each budget the chosen assignment uses."""
    rows = (Row(text, (f"{1 + excess:.2%}",)) for text, excess in chosen.excess.items())
    return Grid(("budget", "used"), tuple(rows))


def layers_grid(setup: QuantizerSetup, schemes: Mapping[str, Scheme]) -> Grid:
    """Every quantizer with its group, its scheme and what the group could have taken."""
    group_of = {point: group for group in setup.groups.values() for point in group.points}
    rows = []
    for point in setup.points.values():
        group = group_of[point.id]
        scheme = str(schemes.get(point.id, "float"))
        allowed = ", ".join(map(str, group.schemes))
        rows.append(Row(point.id, (point.kind, scheme, allowed, number(point.num_elements), group.id)))
    return Grid(("quantizer", "kind", "bits", "allowed", "elements", "group"), tuple(rows))


def trace_grid(table: SensitivityTable) -> Grid:
    """Every trace with its standard error."""
    rows = (
        Row(t.point, (number(t.value), number(t.stderr), number(t.num_draws), number(t.num_samples)))
        for t in table.traces.values()
    )
    return Grid(("weight", "average trace", "standard error", "draws", "samples"), tuple(rows))


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
    return Grid(("finalist", "place in the search", "measured there", *names), tuple(rows))


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


def comparison_grid(rows: Sequence[Mapping[str, object]]) -> Grid:
    """Rows handed over by the caller; the first key of the first row names them."""
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    first, *others = columns
    grid_rows = []
    for row in rows:
        cells = tuple(number(row.get(name)) for name in others)
        grid_rows.append(Row(str(row.get(first, "")), cells))
    return Grid(columns, tuple(grid_rows))
