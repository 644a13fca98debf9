"""The HTML report of a run: one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

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
    return environment.from_string(source).render(
        result=result,
        search=search,
        fine_tune=fine_tune,
        manifest=manifest,
        notes=list(dict.fromkeys([*result.notes, *(manifest.notes if manifest else ())])),
        failed=sum(trial.state == "FAIL" for trial in search.trials),
        stopped=sum(trial.state == "PRUNED" for trial in search.trials),
        summary=grids.summary_grid(setup, result, both),
        excess=grids.excess_grid(search) if search.best.excess else None,
        comparison=grids.comparison_grid(comparison) if comparison else None,
        layers=grids.layers_grid(setup, widths),
        trace_table=grids.trace_grid(sensitivity) if sensitivity else None,
        option_table=grids.option_grid(sensitivity) if sensitivity else None,
        sources=grids.sources_grid(search) if search.reasons else None,
        agreement=grids.agreement_grid(search) if search.agreement else None,
        checks=grids.checks_grid(manifest) if manifest else None,
        times=grids.times_grid(result) if result.seconds else None,
        **{name: Markup(svg) if svg else None for name, svg in figures.items()},
    )


def _figures(
    setup: QuantizerSetup,
    widths: Mapping[str, int],
    search: SearchResult,
    sensitivity: SensitivityTable | None,
    fine_tune: FineTuneResult | None,
) -> dict[str, Any]:
    """Name in the template → SVG; None where there is nothing to draw."""
    # Only here, since the module cannot be imported without matplotlib.
    from raysearch.reporting import figures as draw

    kinds = {setup.points[name].kind for name in widths}
    history = fine_tune is not None and any(epoch.metrics for epoch in fine_tune.history)
    return {
        "weight_bits": draw.bits_figure(setup, widths, "weight") if "weight" in kinds else None,
        "activation_bits": draw.bits_figure(setup, widths, "activation") if "activation" in kinds else None,
        "traces": draw.traces_figure(sensitivity) if sensitivity and sensitivity.traces else None,
        **{
            f"{kind}_responses": draw.responses_figure(sensitivity, kind)
            if sensitivity and any(effect.kind == kind for effect in sensitivity.effects.values())
            else None
            for kind in ("weight", "activation")
        },
        "trials": draw.trials_figure(search),
        "history": draw.history_figure(fine_tune) if fine_tune and history else None,
    }
