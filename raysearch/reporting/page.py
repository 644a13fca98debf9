"""The HTML report of a run: one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources

from raysearch.errors import ConfigError
from raysearch.records import (
    BitAssignment,
    ExportManifest,
    FineTuneResult,
    QuantizerSetup,
    RunResult,
    SearchResult,
    SensitivityTable,
)
from raysearch.reporting import grids
from raysearch.reporting.format import number, size


def render_report(
    result: RunResult,
    setup: QuantizerSetup,
    search: SearchResult,
    *,
    sensitivity: SensitivityTable | None = None,
    fine_tune: FineTuneResult | None = None,
    manifest: ExportManifest | None = None,
    metrics: Mapping[str, Mapping[str, float]] | None = None,
    comparison: Sequence[Mapping[str, object]] = (),
) -> str:
    """Make the page from saved records; equal records give equal text.

    Args:
        result: the run's header; its `report` is not used, so it may still be "".
        setup: the quantizer setup.
        search: the trials and the winner.
        sensitivity: traces and responses; without it their section is left out.
        fine_tune: the training's history; without it its section is left out.
        manifest: the exported files; without it their section is left out.
        metrics: "float" and "quantized" → metric → value; by default those of `result`.
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
    widths = BitAssignment(result.assignment).per_point(setup)
    figures = _figures(setup, widths, search, sensitivity, fine_tune)
    both = metrics or {"float": result.float_metrics, "quantized": result.quantized_metrics}
    tables = {
        "summary": grids.summary_grid(setup, result, both),
        "layers": grids.layers_grid(setup, widths),
        "excess": grids.excess_grid(search) if search.best.excess else None,
        "comparison": grids.comparison_grid(comparison) if comparison else None,
        "trace_table": grids.trace_grid(sensitivity) if sensitivity else None,
        "option_table": grids.option_grid(sensitivity) if sensitivity else None,
        "sources": grids.sources_grid(search) if search.reasons else None,
        "agreement": grids.agreement_grid(search) if search.agreement else None,
        "checks": grids.checks_grid(manifest) if manifest else None,
        "times": grids.times_grid(result) if result.seconds else None,
    }
    export_notes = manifest.notes if manifest else ()
    states = [trial.state for trial in search.trials]
    return environment.from_string(source).render(
        result=result,
        search=search,
        fine_tune=fine_tune,
        manifest=manifest,
        # A note of the export stands in the run's notes too.
        notes=list(dict.fromkeys([*result.notes, *export_notes])),
        failed=states.count("FAIL"),
        stopped=states.count("PRUNED"),
        **tables,
        **{name: Markup(svg) if svg else None for name, svg in figures.items()},
    )


def _figures(
    setup: QuantizerSetup,
    widths: Mapping[str, int],
    search: SearchResult,
    sensitivity: SensitivityTable | None,
    fine_tune: FineTuneResult | None,
) -> dict[str, str | None]:
    """Name in the template → SVG; None where there is nothing to draw."""
    # Only here, since the module cannot be imported without matplotlib.
    from raysearch.reporting import figures as draw

    svgs: dict[str, str | None] = {"trials": draw.trials_figure(search), "traces": None, "history": None}
    point_kinds = {setup.points[name].kind for name in widths}
    effects = sensitivity.effects.values() if sensitivity else ()
    effect_kinds = {effect.kind for effect in effects}
    for kind in ("weight", "activation"):
        svgs[f"{kind}_bits"] = draw.bits_figure(setup, widths, kind) if kind in point_kinds else None
        svgs[f"{kind}_responses"] = None
        if sensitivity and kind in effect_kinds:
            svgs[f"{kind}_responses"] = draw.responses_figure(sensitivity, kind)
    if sensitivity and sensitivity.traces:
        svgs["traces"] = draw.traces_figure(sensitivity)
    if fine_tune and any(epoch.metrics for epoch in fine_tune.history):
        svgs["history"] = draw.history_figure(fine_tune)
    return svgs
