"""Axes over layers: one row a layer while there are few, one column a layer when there are many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, NullFormatter

MANY = 40
"""From here on names no longer fit one below the other on a screen."""
WIDTH = 10.0
"""Inches; the page scales a figure to its own width."""
MAX_NAME = 38


def is_many(count: int) -> bool:
    """Whether layers lie along the x-axis, most of them unnamed."""
    return count > MANY


def height(count: int) -> float:
    """Inches that a figure over `count` layers needs."""
    return 3.4 if is_many(count) else 0.9 + 0.21 * max(count, 2)


def label_layers(axes: Axes, names: Sequence[str]) -> None:
    """Write the layers' names along their axis, every k-th when there are many."""
    count = len(names)
    short = [name if len(name) <= MAX_NAME else "…" + name[1 - MAX_NAME :] for name in names]
    if is_many(count):
        step = math.ceil(count / MANY)
        places = list(range(0, count, step))
        axes.set_xticks(places, [short[i] for i in places], rotation=60, ha="right", rotation_mode="anchor")
        axes.tick_params(axis="x", labelsize=7)
        axes.set_xlim(-0.7, count - 0.3)
        axes.grid(visible=False, axis="x")
    else:
        axes.set_yticks(range(count), short)
        axes.set_ylim(count - 0.4, -0.6)
        axes.grid(visible=False, axis="y")


def set_scale(axes: Axes, which: Literal["x", "y"], values: Sequence[float]) -> None:
    """A logarithmic axis where the values span decades; linear around 0 when some are not positive.

    Args:
        axes: of the figure.
        which: the axis that the values lie along.
        values: what is drawn; those that are not finite count for nothing.
    """
    finite = [value for value in values if math.isfinite(value)]
    sizes = np.abs([value for value in finite if value != 0])
    if sizes.size == 0 or sizes.max() < 20 * sizes.min():
        return
    median = float(np.median(sizes))
    scale = axes.set_xscale if which == "x" else axes.set_yscale
    if min(finite) > 0:
        scale("log", nonpositive="clip")
    elif sizes.max() > 20 * median:
        # Logarithmic to either side of 0, and linear where most of the values are.
        scale("symlog", linthresh=median)
    else:
        return
    axis = axes.xaxis if which == "x" else axes.yaxis
    plain_ticks(axis)


def plain_ticks(axis: Axis) -> None:
    """Write powers of ten as text: names are not read as formulas, so neither are numbers."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
