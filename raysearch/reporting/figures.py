"""The figures of the report, each from records alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raysearch.records import FineTuneResult, QuantizerSetup, SearchResult, SearchTrial, SensitivityTable
from raysearch.reporting.axes import WIDTH, height, is_many, label_layers, plain_ticks, set_scale
from raysearch.reporting.svg import FIRST, INK, SECOND, THIRD, style, to_svg

_MARKERS = "osD^vP*X<>hp"
_AXES = {
    "avg_bits": ("bits per weight", 1.0),
    "act_bits": ("bits per activation", 1.0),
    "size": ("size, kB", 1e-3),
    "bops": ("bit operations, G", 1e-9),
    "effective": ("effective compression", 1.0),
    "activation_memory": ("activation memory, kB", 1e-3),
    "latency": ("latency, ms", 1e3),
}
"""Cost of a front → its axis' label, and the factor to that unit."""


def bits_figure(setup: QuantizerSetup, widths: Mapping[str, int], kind: str) -> str:
    """Bit-width of every quantizer of one kind that is quantized, in graph order."""
    names = [p.id for p in setup.points.values() if p.kind == kind and p.id in widths]
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
    errors = [trace.stderr if math.isfinite(trace.stderr) else 0.0 for trace in table.traces.values()]
    look: dict[str, Any] = {
        "fmt": "o",
        "markersize": 4,
        "color": FIRST,
        "ecolor": INK,
        "elinewidth": 0.9,
        "capsize": 2,
    }
    with style("traces"):
        figure = Figure(figsize=(WIDTH, height(len(names))), layout="constrained")
        axes = figure.add_subplot()
        if is_many(len(names)):
            axes.errorbar(range(len(names)), values, yerr=errors, **{**look, "markersize": 2.5, "capsize": 0})
            set_scale(axes, "y", values)
            axes.set_ylabel("average trace ± standard error")
        else:
            axes.errorbar(values, range(len(names)), xerr=errors, **look)
            set_scale(axes, "x", values)
            axes.set_xlabel("average trace ± standard error")
        label_layers(axes, names)
        return to_svg(figure, "Average Hessian trace of each weight")


def responses_figure(table: SensitivityTable, kind: str) -> str:
    """Response of every option of one kind: groups against bit-widths, logarithmic colours."""
    effects = [effect for effect in table.effects.values() if effect.kind == kind]
    groups = list(dict.fromkeys(effect.group for effect in effects))
    widths = sorted({effect.num_bits for effect in effects})
    row = {group: index for index, group in enumerate(groups)}
    cells = np.full((len(groups), len(widths)), np.nan)
    for effect in effects:
        cells[row[effect.group], widths.index(effect.num_bits)] = effect.response
    positive = cells[np.isfinite(cells) & (cells > 0)]
    low, high = (float(positive.min()), float(positive.max())) if positive.size else (1e-12, 1.0)
    norm = LogNorm(low, max(high, low * 1.0001), clip=True)
    # A response of 0 has no logarithm; it takes the lowest colour. An option that is not allowed stays open.
    shown = np.ma.masked_invalid(np.where(cells <= 0, low, cells))
    many = is_many(len(groups))
    with style(f"responses {kind}"):
        figure = Figure(figsize=(WIDTH, height(len(groups)) + 0.2), layout="constrained")
        axes = figure.add_subplot()
        image: dict[str, Any] = {"aspect": "auto", "interpolation": "none", "norm": norm, "cmap": "viridis_r"}
        axes.imshow(shown.T if many else shown, **image)
        axes.grid(visible=False)
        ticks = axes.set_yticks if many else axes.set_xticks
        ticks(range(len(widths)), [f"{bits} bits" for bits in widths])
        label_layers(axes, groups)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(ScalarMappable(norm, "viridis_r"), ax=axes, pad=0.01, aspect=30, shrink=0.98)
        bar.set_label("response")
        plain_ticks(bar.ax.yaxis)
        return to_svg(figure, f"Response of each {kind} option")


def trials_figure(search: SearchResult) -> str:
    """Measured value over the trial's number and the front's cost; stopped trials by their estimates."""
    done = [t for t in search.trials if t.state == "COMPLETE" and math.isfinite(t.value)]
    stopped = [t for t in search.trials if t.state == "PRUNED" and math.isfinite(t.value)]
    kind = search.front_cost
    sources = list(dict.fromkeys(t.source for t in done))
    with style("trials"):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        over_number, over_cost = figure.subplots(1, 2, sharey=True)
        colours = (FIRST, SECOND, THIRD)
        for index, source in enumerate(sources):
            mine = [t for t in done if t.source == source]
            look: dict[str, Any] = {
                "s": 22,
                "marker": _MARKERS[index % len(_MARKERS)],
                "color": colours[index % len(colours)],
                "linewidths": 0,
                "alpha": 0.8,
            }
            over_number.scatter([t.number for t in mine], [t.value for t in mine], label=source, **look)
            over_cost.scatter([_cost(t, kind) for t in mine], [t.value for t in mine], **look)
        if stopped:
            faint: dict[str, Any] = {"s": 14, "marker": "x", "color": INK, "linewidths": 0.8, "alpha": 0.5}
            label = "stopped early (estimate)"
            over_number.scatter([t.number for t in stopped], [t.value for t in stopped], label=label, **faint)
            over_cost.scatter([_cost(t, kind) for t in stopped], [t.value for t in stopped], **faint)
        if done:
            running = np.maximum if search.maximize else np.minimum
            best = running.accumulate([t.value for t in done])
            over_number.step([t.number for t in done], best, where="post", color=INK, linewidth=1)
        front = [t for t in search.front if math.isfinite(t.value)]
        over_cost.plot(
            [_cost(t, kind) for t in front],
            [t.value for t in front],
            color=INK, linewidth=1, marker=".", markersize=4, label="feasible front",
        )  # fmt: skip
        over_cost.plot(
            _cost(search.best, kind), search.best.value, marker="o", markersize=11, markerfacecolor="none",
            markeredgecolor=INK, linestyle="none", label="chosen",
        )  # fmt: skip
        set_scale(over_number, "y", [t.value for t in done])
        over_number.set(xlabel="trial (line: best so far)", ylabel=f"measured {search.objective}")
        over_number.xaxis.set_major_locator(MaxNLocator(integer=True))
        over_cost.set_xlabel(_AXES[kind][0])
        for axes in (over_number, over_cost):
            handles, _ = axes.get_legend_handles_labels()
            if handles:
                axes.legend(fontsize=7.5, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2)
        return to_svg(figure, "Trials of the search")


def history_figure(result: FineTuneResult) -> str:
    """Every metric over the epochs of the training; the chosen epoch is marked."""
    names = list(dict.fromkeys(name for epoch in result.history for name in epoch.metrics))
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    with style("history"):
        figure = Figure(figsize=(WIDTH, 2.6 * rows), layout="constrained")
        flat: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, name in zip(flat, names, strict=False):
            having = [e for e in result.history if name in e.metrics]
            axes.plot(
                [e.epoch for e in having], [e.metrics[name] for e in having], color=FIRST, marker="o",
                markersize=3.5, linewidth=1.3,
            )  # fmt: skip
            axes.axvline(result.best_epoch, color=INK, linewidth=0.9, linestyle="--")
            axes.set_title(name + (" (chooses the epoch)" if name == result.monitor else ""))
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in flat[len(names) :]:
            axes.set_visible(False)
        return to_svg(figure, "Metrics of the training")


def _cost(trial: SearchTrial, kind: str) -> float:
    return trial.costs.get(kind, math.nan) * _AXES[kind][1]
