"""Matplotlib figures as inline SVG that follows the page's colours, light or dark."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# Matplotlib knows no CSS variables, so each role is drawn in a colour that occurs nowhere else and is
# replaced in the text of the SVG.
INK, FAINT, FIRST, SECOND, THIRD = "#010203", "#010204", "#010205", "#010206", "#010207"
_ROLES = {INK: "--ink", FAINT: "--rule", FIRST: "--c1", SECOND: "--c2", THIRD: "--c3"}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": False,
    "font.size": 9.0,
    "font.family": ["DejaVu Sans"],
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


_DRAWING = (
    "axes.", "errorbar.", "figure.", "font.", "grid.", "image.", "legend.", "lines.", "patch.", "path.",
    "savefig.", "scatter.", "svg.", "text.", "xaxis.", "xtick.", "yaxis.", "ytick.",
)  # fmt: skip


def style(name: str) -> Any:
    """The context in which a figure must be drawn and written; `name` makes its ids its own."""
    # From the defaults, because a reader's own matplotlibrc must not change the page.
    values: Any = {k: v for k, v in matplotlib.rcParamsDefault.items() if k.startswith(_DRAWING)}
    values.update(STYLE, **{"svg.hashsalt": f"raysearch {name}"})
    return matplotlib.rc_context(values)


def to_svg(figure: Figure, title: str) -> str:
    """A figure as an `<svg>` element; equal figures give equal text.

    Args:
        figure: drawn inside `style`.
        title: what a screen reader says; plain text.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The browser's fonts draw the text; that matplotlib's own font lacks a sign is of no concern.
        warnings.filterwarnings("ignore", message="Glyph")
        nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # nothing refers to them, and a page has several figures
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    width = re.search(r'<svg[^>]*? width="([0-9.]+)pt"', text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    points = float(width.group(1)) if width else 720.0
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    text = text.replace("<svg", f'<svg role="img" aria-label="{label}" style="max-width: {points:g}pt"', 1)
    for colour, variable in _ROLES.items():
        text = text.replace(colour, f"var({variable})")
    return text
