"""The figures of the report, each from records alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raysearch.records import (
    FineTuneResult,
    QuantizerSetup,
    Scheme,
    SearchResult,
    SearchTrial,
    SensitivityTable,
)
from raysearch.reporting.axes import WIDTH, height, is_many, label_layers, plain_ticks, set_scale
from raysearch.reporting.format import cost_axis
from raysearch.reporting.svg import FIRST, INK, SECOND, THIRD, style, to_svg

_MARKERS = "osD^vP*X<>hp"
_COLOURS = "viridis_r"


def bits_figure(setup: QuantizerSetup, widths: Mapping[str, int], kind: str) -> str:
    """Bit-width of every quantizer of one kind that is quantized, in graph order.

    Args:
        setup: the points.
        widths: point → bit-width; the others stay float and have no bar.
        kind: "weight" or "activation".
    """
    points = [point for point in setup.points.values() if point.kind == kind]
    names = [point.id for point in points if point.id in widths]
    values = [widths[name] for name in names]
    colour = FIRST if kind == "weight" else SECOND
    with style(f"bits {kind}"):
        figure = Figure(figsize=(WIDTH, height(len(names))), layout="constrained")
        axes = figure.add_subplot()
        if is_many(len(names)):
            axes.bar(range(len(names)), values, width=0.8, color=colour)
            axes.set_ylabel("bits")
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            axes.barh(range(len(names)), values, height=0.7, color=colour)
            for place, value in enumerate(values):
                axes.text(value + 0.06, place, str(value), va="center", fontsize=8)
            axes.set_xlabel("bits")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        label_layers(axes, names)
        return to_svg(figure, f"Bit-width of each {kind} quantizer")


def traces_figure(table: SensitivityTable) -> str:
    """Average Hessian trace of every weight with one standard error each way."""
    names = list(table.traces)
    values = [trace.value for trace in table.traces.values()]
    # A standard error that is not known (one draw) has no bar.
    errors = [trace.stderr if math.isfinite(trace.stderr) else 0.0 for trace in table.traces.values()]
    look: dict[str, Any] = {"fmt": "o", "color": FIRST, "ecolor": INK, "elinewidth": 0.9}
    with style("traces"):
        figure = Figure(figsize=(WIDTH, height(len(names))), layout="constrained")
        axes = figure.add_subplot()
        if is_many(len(names)):
            axes.errorbar(range(len(names)), values, yerr=errors, markersize=2.5, capsize=0, **look)
            set_scale(axes, "y", values)
            axes.set_ylabel("average trace ± standard error")
        else:
            axes.errorbar(values, range(len(names)), xerr=errors, markersize=4, capsize=2, **look)
            set_scale(axes, "x", values)
            axes.set_xlabel("average trace ± standard error")
        label_layers(axes, names)
        return to_svg(figure, "Average Hessian trace of each weight")


def responses_figure(table: SensitivityTable, kind: str) -> str:
    """Response of every option of one kind: groups against schemes, logarithmic colours."""
    effects = [effect for effect in table.effects.values() if effect.kind == kind]
    groups = list(dict.fromkeys(effect.group for effect in effects))
    schemes = sorted({effect.scheme for effect in effects})
    cells = _response_cells(table, groups, schemes)
    low, high = _positive_range(cells)
    norm = LogNorm(low, high, clip=True)
    # A response of 0 has no logarithm and takes the lowest colour; an option that is not allowed stays open.
    drawable = np.ma.masked_invalid(np.where(cells <= 0, low, cells))
    with style(f"responses {kind}"):
        figure = Figure(figsize=(WIDTH, height(len(groups)) + 0.2), layout="constrained")
        axes = figure.add_subplot()
        image: dict[str, Any] = {"aspect": "auto", "interpolation": "none", "norm": norm, "cmap": _COLOURS}
        labels = [f"{scheme} bits" if scheme.is_plain else str(scheme) for scheme in schemes]
        if is_many(len(groups)):
            axes.imshow(drawable.T, **image)
            axes.set_yticks(range(len(schemes)), labels)
        else:
            axes.imshow(drawable, **image)
            axes.set_xticks(range(len(schemes)), labels)
        axes.grid(visible=False)
        label_layers(axes, groups)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(ScalarMappable(norm, _COLOURS), ax=axes, pad=0.01, aspect=30, shrink=0.98)
        bar.set_label("response")
        plain_ticks(bar.ax.yaxis)
        return to_svg(figure, f"Response of each {kind} option")


def _response_cells(table: SensitivityTable, groups: Sequence[str], schemes: Sequence[Scheme]) -> np.ndarray:
    """(groups, schemes) responses; NaN where a group may not take a scheme."""
    cells = np.full((len(groups), len(schemes)), np.nan)
    for row, group in enumerate(groups):
        for column, scheme in enumerate(schemes):
            effect = table.effects.get((group, scheme))
            if effect is not None:
                cells[row, column] = effect.response
    return cells


def _positive_range(cells: np.ndarray) -> tuple[float, float]:
    """The least and the largest positive cell, never the same; any range where none is positive."""
    positive = cells[np.isfinite(cells) & (cells > 0)]
    if not positive.size:
        return 1e-12, 1.0
    low, high = float(positive.min()), float(positive.max())
    return low, max(high, low * 1.0001)


def trials_figure(search: SearchResult, chosen: SearchTrial) -> str:
    """Measured value over the trial's number and the front's cost; stopped trials by their estimates.

    Args:
        search: all trials.
        chosen: the one that is deployed.
    """
    finite = [trial for trial in search.trials if math.isfinite(trial.value)]
    complete = [trial for trial in finite if trial.is_complete]
    stopped = [trial for trial in finite if trial.is_stopped]
    with style("trials"):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        over_number, over_cost = figure.subplots(1, 2, sharey=True)
        _scatter_trials(over_number, over_cost, search.front_cost, complete, stopped)
        if complete:
            _plot_best_so_far(over_number, search, complete)
        _plot_front(over_cost, search, chosen)
        set_scale(over_number, "y", [trial.value for trial in complete])
        over_number.set(xlabel="trial (line: best so far)", ylabel=f"measured {search.objective}")
        over_number.xaxis.set_major_locator(MaxNLocator(integer=True))
        over_cost.set_xlabel(cost_axis(search.front_cost)[0])
        for axes in (over_number, over_cost):
            handles, _ = axes.get_legend_handles_labels()
            if handles:
                axes.legend(fontsize=7.5, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2)
        return to_svg(figure, "Trials of the search")


def _scatter_trials(
    over_number: Axes,
    over_cost: Axes,
    cost_kind: str,
    complete: Sequence[SearchTrial],
    stopped: Sequence[SearchTrial],
) -> None:
    """A dot a trial in both pictures, each source in a look of its own, the stopped trials faint."""
    colours = (FIRST, SECOND, THIRD)
    sources = list(dict.fromkeys(trial.source for trial in complete))
    for index, source in enumerate(sources):
        trials = [trial for trial in complete if trial.source == source]
        look: dict[str, Any] = {"s": 22, "linewidths": 0, "alpha": 0.8}
        look["marker"] = _MARKERS[index % len(_MARKERS)]
        look["color"] = colours[index % len(colours)]
        _scatter(over_number, [trial.number for trial in trials], trials, label=source, **look)
        _scatter(over_cost, _costs(trials, cost_kind), trials, **look)
    if stopped:
        faint: dict[str, Any] = {"s": 14, "marker": "x", "color": INK, "linewidths": 0.8, "alpha": 0.5}
        label = "stopped early (estimate)"
        _scatter(over_number, [trial.number for trial in stopped], stopped, label=label, **faint)
        _scatter(over_cost, _costs(stopped, cost_kind), stopped, **faint)


def _scatter(axes: Axes, places: Sequence[float], trials: Sequence[SearchTrial], **look: Any) -> None:
    axes.scatter(places, [trial.value for trial in trials], **look)


def _plot_best_so_far(axes: Axes, search: SearchResult, complete: Sequence[SearchTrial]) -> None:
    running = np.maximum if search.maximize else np.minimum
    best = running.accumulate([trial.value for trial in complete])
    axes.step([trial.number for trial in complete], best, where="post", color=INK, linewidth=1)


def _plot_front(axes: Axes, search: SearchResult, chosen: SearchTrial) -> None:
    """The feasible front as a line, and a ring around the trial that was chosen.

    Args:
        axes: the picture.
        search: has the front.
        chosen: the trial.
    """
    front = [trial for trial in search.front if math.isfinite(trial.value)]
    costs = _costs(front, search.front_cost)
    line: dict[str, Any] = {"linewidth": 1, "marker": ".", "markersize": 4, "label": "feasible front"}
    axes.plot(costs, [trial.value for trial in front], color=INK, **line)
    (chosen_cost,) = _costs([chosen], search.front_cost)
    ring: dict[str, Any] = {"marker": "o", "markersize": 11, "markerfacecolor": "none"}
    ring |= {"markeredgecolor": INK, "linestyle": "none", "label": "chosen"}
    axes.plot(chosen_cost, chosen.value, **ring)


def _costs(trials: Sequence[SearchTrial], kind: str) -> list[float]:
    """The trials' costs in the unit of the axis; NaN, which is not drawn, where a trial has none."""
    _, unit = cost_axis(kind)
    return [trial.costs.get(kind, math.nan) / unit for trial in trials]


def history_figure(result: FineTuneResult) -> str:
    """Every metric over the epochs of the training; the chosen epoch is marked."""
    metrics = [name for epoch in result.history for name in epoch.metrics]
    names = list(dict.fromkeys(metrics))
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    with style("history"):
        figure = Figure(figsize=(WIDTH, 2.6 * rows), layout="constrained")
        flat: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, name in zip(flat, names, strict=False):
            epochs = [epoch for epoch in result.history if name in epoch.metrics]
            values = [epoch.metrics[name] for epoch in epochs]
            look: dict[str, Any] = {"color": FIRST, "marker": "o", "markersize": 3.5, "linewidth": 1.3}
            axes.plot([epoch.epoch for epoch in epochs], values, **look)
            axes.axvline(result.best_epoch, color=INK, linewidth=0.9, linestyle="--")
            chooses = " (chooses the epoch)" if name == result.monitor else ""
            axes.set_title(name + chooses)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in flat[len(names) :]:
            axes.set_visible(False)
        return to_svg(figure, "Metrics of the training")
