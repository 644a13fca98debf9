"""Figures of a run for notebooks and papers, by Matplotlib; the page draws its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from raysearch.errors import ConfigError, StorageError
from raysearch.records import FineTuneResult, SearchResult, SearchTrial, SensitivityTable
from raysearch.records.costs.text import cost_axis
from raysearch.reporting.lanes import Lane


def new_axes(width: float = 7.0, height: float = 4.0) -> Any:
    """Axes of a figure of its own.

    Args:
        width: inches.
        height: inches.

    Raises:
        ConfigError: Matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ConfigError(
            "plots need Matplotlib, which is not installed: pip install 'raysearch[notebook]'; "
            "`raysearch report` needs none."
        ) from error
    _, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
    return axes


def plot_front(search: SearchResult, chosen: SearchTrial, kind: str, axes: Any) -> Any:
    """Measured value of the trials over a cost, with the front of the search and the chosen trial.

    Args:
        search: the trials.
        chosen: the one that is deployed.
        kind: of the cost.
        axes: to draw on.

    Raises:
        StorageError: the trials have no such cost.
    """
    if kind not in search.best.costs:
        raise StorageError(f"the trials have no cost '{kind}'; they have {', '.join(search.best.costs)}.")
    label, factor = cost_axis(kind)
    for state, look in (("COMPLETE", {"alpha": 0.6}), ("PRUNED", {"marker": "x", "alpha": 0.4})):
        trials = [trial for trial in search.trials if trial.state == state]
        places = [trial.costs[kind] / factor for trial in trials]
        axes.scatter(places, [trial.value for trial in trials], s=18, label=state.lower(), **look)
    if kind == search.front_cost:
        costs = [trial.costs[kind] / factor for trial in search.front]
        axes.plot(costs, [trial.value for trial in search.front], linewidth=1, label="front")
    axes.plot(chosen.costs[kind] / factor, chosen.value, "D", markersize=8, label="chosen")
    axes.set(xlabel=label, ylabel=f"measured {search.objective}")
    axes.legend(frameon=False)
    return axes


def plot_bits(lanes: list[Lane], axes: Any) -> Any:
    """Bits of every weight and activation, in the order of the network."""
    for kind, offset in (("weight", -0.2), ("activation", 0.2)):
        of_kind = [lane for lane in lanes if lane.kind == kind]
        bits = [0 if lane.scheme is None else lane.scheme.num_bits for lane in of_kind]
        axes.bar(np.arange(len(bits)) + offset, bits, width=0.4, label=kind)
    names = [lane.group for lane in lanes if lane.kind == "weight"]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7, parse_math=False)
    axes.set_ylabel("bits")
    axes.legend(frameon=False)
    return axes


def plot_sensitivity(table: SensitivityTable, kind: str, axes: Any) -> Any:
    """Response of every option of one kind: a line a group over its bits.

    Args:
        table: what was measured.
        kind: "weight" or "activation".
        axes: to draw on.
    """
    effects = [effect for effect in table.effects.values() if effect.kind == kind]
    for group in dict.fromkeys(effect.group for effect in effects):
        options = [effect for effect in effects if effect.group == group]
        bits = [effect.num_bits for effect in options]
        axes.plot(bits, [effect.response for effect in options], marker="o", markersize=3, label=group)
    axes.set(xlabel="bits", ylabel="response", yscale="log")
    if len(axes.lines) <= 12:
        legend = axes.legend(frameon=False, fontsize=7)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return axes


def plot_history(tuned: FineTuneResult, metric: str, axes: Any) -> Any:
    """A metric over the epochs of the training; the epoch that was kept is marked.

    Args:
        tuned: the training.
        metric: one of its metrics.
        axes: to draw on.

    Raises:
        StorageError: the training has no such metric, or none took place.
    """
    entries = [entry for entry in tuned.history if metric in entry.metrics]
    if not entries:
        names = dict.fromkeys(name for entry in tuned.history for name in entry.metrics)
        raise StorageError(f"the training has no '{metric}'; it has {', '.join(names) or 'no epoch'}.")
    axes.plot([entry.epoch for entry in entries], [entry.metrics[metric] for entry in entries], marker="o")
    axes.axvline(tuned.best_epoch, linestyle="--", linewidth=0.8, color="grey")
    axes.set(xlabel="epoch", ylabel=metric)
    return axes
