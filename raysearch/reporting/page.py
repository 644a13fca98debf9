"""The HTML report of a run: one page that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from raysearch.errors import ConfigError
from raysearch.records import COST_KINDS, TrialState
from raysearch.records.costs.text import cost, cost_name, number, percent, signed, size
from raysearch.reporting import grids
from raysearch.reporting.answer import verdict
from raysearch.reporting.charts import chart_data
from raysearch.reporting.interactions import pairs_grid
from raysearch.reporting.lanes import Lane, LaneMaker, largest_shares
from raysearch.reporting.network import draw_network
from raysearch.reporting.printable import printable
from raysearch.reporting.provenance import command_of, origins_grid, settings_grid
from raysearch.reporting.records import ReportRecords

SCRIPTS = ("chart.umd.min.js", "report.js")
"""The plotting library, and what the page does with it."""


def render_report(records: ReportRecords) -> str:
    """Make the page from saved records; equal records give equal text.

    Args:
        records: of a run, as far as it has come.

    Returns:
        A complete HTML document with its figures' data and scripts inside.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    return render("report.html.jinja", [chart_data(records)], **_sections(records))


def render(template: str, data: list[dict[str, Any]], **values: Any) -> str:
    """A page of one of the templates.

    Args:
        template: its file.
        data: what its figures draw, for each run.
        **values: what the template names.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise ConfigError(
            f"the report needs jinja2, and '{error.name}' is not installed. Install it with `pip install "
            "jinja2`; the run's records do not depend on it."
        ) from error

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(_asset),
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    filters = {"number": number, "signed": signed, "size": size, "cost": cost, "percent": percent}
    environment.filters.update(filters)
    # Inside a script element only `</` and `<!--` could end the text early.
    text = json.dumps(_printable(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return environment.get_template(template).render(
        style=Markup(_asset("report.css")),
        scripts=[Markup(_asset(name)) for name in SCRIPTS],
        data=Markup(text.replace("<", "\\u003c")),
        **values,
    )


def _finalize(value: Any) -> Any:
    """A value of the template as it is put into the page; what is HTML already has no letters of others."""
    return printable(value) if type(value) is str else value


def _printable(data: Any) -> Any:
    """JSON data whose names and texts are those that the page's own text has."""
    if isinstance(data, str):
        return printable(data)
    if isinstance(data, Mapping):
        return {_printable(key): _printable(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_printable(value) for value in data]
    return data


def _asset(name: str) -> str:
    return resources.files("raysearch.reporting").joinpath("assets", name).read_text(encoding="utf-8")


def _sections(records: ReportRecords) -> dict[str, Any]:
    """Name in the template → what it shows; None or empty where there is nothing."""
    result, search = records.result, records.search
    export_notes = records.manifest.notes if records.manifest else ()
    notes = (*result.notes, *export_notes) if result else export_notes
    lanes = lanes_of(records)
    states = [trial.state for trial in search.trials] if search else []
    sentence = verdict(result, records.setup, records.chosen, records.manifest) if result else ""
    return {
        "records": records,
        "verdict": sentence,
        # A note of the export stands in the run's notes too.
        "notes": list(dict.fromkeys(notes)),
        "failed": states.count(TrialState.FAIL),
        "stopped": states.count(TrialState.PRUNED),
        "command": command_of(records.run_id, records.started),
        "step_kind": step_kind(records),
        "step_name": cost_name(step_kind(records)),
        "lanes": lanes,
        "largest": largest_shares(lanes),
        "network": draw_network(records.setup, lanes) if records.setup is not None else None,
        **_tables(records),
    }


def step_kind(records: ReportRecords) -> str:
    """The cost that a step of a lane is counted in: that of the first budget, or of the front, or size."""
    kinds = [budget.kind for budget in records.budgets]
    candidates = [*kinds, records.search.front_cost] if records.search else kinds
    return next((kind for kind in candidates if kind in COST_KINDS), "size")


def lanes_of(records: ReportRecords) -> list[Lane]:
    """A lane a group, as far as the run has come."""
    if records.setup is None:
        return []
    return LaneMaker(records.setup, records.assignment, records.sensitivity, step_kind(records)).lanes()


def _tables(records: ReportRecords) -> Mapping[str, grids.Grid | None]:
    result, search, manifest = records.result, records.search, records.manifest
    summary = None
    if result is not None and records.setup is not None:
        summary = grids.summary_grid(records.setup, result)
    config = records.started.get("config", {})
    chosen = records.chosen
    return {
        "summary": summary,
        "options": grids.option_grid(records.sensitivity) if records.sensitivity else None,
        "pairs": _pairs(records),
        "excess": grids.excess_grid(chosen) if chosen and chosen.excess else None,
        "sources": grids.sources_grid(search) if search and search.reasons else None,
        "agreement": grids.agreement_grid(search) if search and search.agreement else None,
        "finalists": grids.finalists_grid(result.finalists) if result and result.finalists else None,
        "checks": grids.checks_grid(manifest) if manifest else None,
        "times": grids.times_grid(records.seconds) if records.seconds else None,
        "settings": settings_grid(config) if config else None,
        "origins": origins_grid(records.started) if records.started else None,
    }


def _pairs(records: ReportRecords) -> grids.Grid | None:
    """The pairs of groups that count most; None before an assignment is chosen, and of one group."""
    assignment = records.assignment
    if records.sensitivity is None or assignment is None or len(assignment.schemes) < 2:
        return None
    return pairs_grid(records.sensitivity, assignment)
