"""The HTML report of a run: one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from raysearch.errors import ConfigError
from raysearch.records import (
    BitAssignment,
    ExportManifest,
    FineTuneResult,
    QuantizerSetup,
    RunResult,
    Scheme,
    SearchResult,
    SearchTrial,
    SensitivityTable,
    TrialState,
)
from raysearch.reporting import grids
from raysearch.reporting.answer import verdict
from raysearch.reporting.format import number, size


@dataclass(frozen=True)
class ReportRecords:
    """What a report is made of; a section without its record is left out.

    Attributes:
        result: the run's header; its `report` is not used, so it may still be "".
        setup: the quantizer setup.
        search: the trials and the winner.
        sensitivity: traces and responses.
        fine_tune: the training's history.
        manifest: the exported files.
        metrics: "float" and "quantized" → metric → value; by default those of `result`.
    """

    result: RunResult
    setup: QuantizerSetup
    search: SearchResult
    sensitivity: SensitivityTable | None = None
    fine_tune: FineTuneResult | None = None
    manifest: ExportManifest | None = None
    metrics: Mapping[str, Mapping[str, float]] | None = None

    @property
    def chosen(self) -> SearchTrial:
        """The trial whose assignment is deployed: the best finalist where there were any."""
        if not self.result.finalists:
            return self.search.best
        number = self.result.finalists[0]["trial"]
        return next(trial for trial in self.search.trials if trial.number == number)


def render_report(records: ReportRecords, comparison: Sequence[Mapping[str, object]] = ()) -> str:
    """Make the page from saved records; equal records give equal text.

    Args:
        records: of the run.
        comparison: rows of a further table, such as uniform widths; their keys are its columns.

    Returns:
        A complete HTML document with its figures inside.

    Raises:
        ConfigError: jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401 - looked for here, used by the figures
        from markupsafe import Markup
    except ImportError as error:
        raise ConfigError(
            f"the report needs jinja2 and matplotlib, and '{error.name}' is not installed. Install them with "
            "`pip install raysearch[report]`; the run's records do not depend on them."
        ) from error

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(number=number, size=size)
    source = resources.files("raysearch.reporting").joinpath("report.html.jinja").read_text(encoding="utf-8")
    result, search = records.result, records.search
    schemes = BitAssignment(result.assignment).per_point(records.setup)
    figures = {name: Markup(svg) for name, svg in _figures(records, schemes).items()}
    missing = dict.fromkeys(set(_FIGURES) - figures.keys())
    export_notes = records.manifest.notes if records.manifest else ()
    states = [trial.state for trial in search.trials]
    return environment.from_string(source).render(
        result=result,
        search=search,
        fine_tune=records.fine_tune,
        manifest=records.manifest,
        # A note of the export stands in the run's notes too.
        notes=list(dict.fromkeys([*result.notes, *export_notes])),
        failed=states.count(TrialState.FAIL),
        stopped=states.count(TrialState.PRUNED),
        verdict=verdict(result),
        comparison=grids.comparison_grid(comparison) if comparison else None,
        **_tables(records, schemes),
        **figures,
        **missing,
    )


def _tables(records: ReportRecords, schemes: Mapping[str, Scheme]) -> dict[str, grids.Grid | None]:
    """Name in the template → table; None where there is nothing to list."""
    result, search = records.result, records.search
    metrics = records.metrics or {"float": result.float_metrics, "quantized": result.quantized_metrics}
    table, manifest = records.sensitivity, records.manifest
    return {
        "summary": grids.summary_grid(records.setup, result, metrics),
        "layers": grids.layers_grid(records.setup, schemes),
        "excess": grids.excess_grid(records.chosen) if records.chosen.excess else None,
        "trace_table": grids.trace_grid(table) if table else None,
        "option_table": grids.option_grid(table) if table else None,
        "sources": grids.sources_grid(search) if search.reasons else None,
        "agreement": grids.agreement_grid(search) if search.agreement else None,
        "finalists": grids.finalists_grid(result.finalists) if result.finalists else None,
        "checks": grids.checks_grid(manifest) if manifest else None,
        "times": grids.times_grid(result.seconds) if result.seconds else None,
    }


_FIGURES = (
    "weight_bits", "activation_bits", "traces", "weight_responses", "activation_responses", "trials",
    "history",
)  # fmt: skip
"""The template's names of figures."""


def _figures(records: ReportRecords, schemes: Mapping[str, Scheme]) -> dict[str, str]:
    """Some of `_FIGURES` → SVG: those for which there is something to draw."""
    # Only here, since the module cannot be imported without matplotlib.
    from raysearch.reporting import figures as draw

    svgs = {"trials": draw.trials_figure(records.search, records.chosen)}
    widths = {name: scheme.num_bits for name, scheme in schemes.items()}
    point_kinds = {records.setup.points[name].kind for name in schemes}
    for kind in sorted(point_kinds):
        svgs[f"{kind}_bits"] = draw.bits_figure(records.setup, widths, kind)
    table = records.sensitivity
    if table:
        effect_kinds = {effect.kind for effect in table.effects.values()}
        for effect_kind in sorted(effect_kinds):
            svgs[f"{effect_kind}_responses"] = draw.responses_figure(table, effect_kind)
        if table.traces:
            svgs["traces"] = draw.traces_figure(table)
    fine_tune = records.fine_tune
    if fine_tune and any(epoch.metrics for epoch in fine_tune.history):
        svgs["history"] = draw.history_figure(fine_tune)
    return svgs
