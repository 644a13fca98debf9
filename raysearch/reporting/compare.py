"""Two runs side by side, on one page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysearch.records.costs.text import MISSING, cost, cost_name, duration, number
from raysearch.reporting.answer import value_text
from raysearch.reporting.charts import chart_data
from raysearch.reporting.grids import Grid, Row
from raysearch.reporting.page import render
from raysearch.reporting.provenance import changed_settings, settings_text
from raysearch.reporting.records import ReportRecords


def render_comparison(first: ReportRecords, second: ReportRecords) -> str:
    """A page with the answers of two runs, their fronts in one figure, and what differs between them.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    runs = (first, second)
    shared = _schemes_of(first).keys() & _schemes_of(second).keys()
    return render(
        "compare.html.jinja",
        [chart_data(records) for records in runs],
        runs=runs,
        answers=answers_grid(first, second),
        layers=layers_grid(first, second),
        num_shared=len(shared),
        settings=settings_grid(first, second),
        have_fronts=any(records.search for records in runs),
    )


def answers_grid(first: ReportRecords, second: ReportRecords) -> Grid:
    """Metrics, costs and times of both."""
    rows = [Row("budget", tuple(" ".join(records.budget) or MISSING for records in (first, second)))]
    rows += _pairs(_metrics(first), _metrics(second))
    rows += _pairs(_costs(first), _costs(second))
    rows.append(Row("time in all", (_time(first), _time(second))))
    return Grid(("", first.run_id, second.run_id), tuple(rows))


def _pairs(one: Mapping[str, str], other: Mapping[str, str]) -> list[Row]:
    names = dict.fromkeys([*one, *other])
    return [Row(name, (one.get(name, MISSING), other.get(name, MISSING))) for name in names]


def _metrics(records: ReportRecords) -> dict[str, str]:
    result = records.result
    if result is None:
        return {}
    texts: dict[str, str] = {}
    for name in result.quantized_metrics:
        texts[f"{name}, float"] = number(result.float_metrics.get(name))
        errors = result.standard_errors.get("quantized", {})
        texts[name] = value_text(result.quantized_metrics, errors, name)
    return texts


def _costs(records: ReportRecords) -> dict[str, str]:
    costs = records.result.costs if records.result else {}
    return {cost_name(kind): cost(kind, value) for kind, value in costs.items()}


def _time(records: ReportRecords) -> str:
    return duration(sum(records.seconds.values())) if records.seconds else MISSING


def _schemes_of(records: ReportRecords) -> dict[str, str]:
    """Group → what was chosen for it."""
    assignment = records.assignment
    if assignment is None:
        return {}
    return {name: str(scheme) for name, scheme in assignment.schemes.items()}


def layers_grid(first: ReportRecords, second: ReportRecords) -> Grid:
    """The groups for which the two have chosen differently."""
    one, other = _schemes_of(first), _schemes_of(second)
    rows = [row for row in _pairs(one, other) if row.cells[0] != row.cells[1]]
    return Grid(("group", first.run_id, second.run_id), tuple(rows))


def settings_grid(first: ReportRecords, second: ReportRecords) -> Grid:
    """The settings in which the two differ."""
    one, other = _settings(first), _settings(second)
    names = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
    rows = [Row(name, (one.get(name, "default"), other.get(name, "default"))) for name in names]
    return Grid(("setting", first.run_id, second.run_id), tuple(rows))


def _settings(records: ReportRecords) -> dict[str, str]:
    values: dict[str, Any] = changed_settings(records.started.get("config", {}))
    return {name: settings_text(value) for name, value in values.items()}
