"""Numbers and costs as people read them: on the page, on a terminal and in errors alike."""

from __future__ import annotations

import math

from raysearch.records.costs.kinds import COST_KINDS

MISSING = "–"


DIGITS = 4
"""Significant digits of a number."""


def number(value: object, digits: int = DIGITS) -> str:
    """A number with a few significant digits; whole numbers in full, text unchanged.

    Args:
        value: a number, or text.
        digits: significant ones.

    Example:
        >>> number(0.123456789), number(1200000.0), number(float("nan")), number("a")
        ('0.1235', '1,200,000', '–', 'a')
    """
    if value is None:
        return MISSING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", "−")
    return f"{value:.{digits}g}".replace("-", "−")


def signed(value: float) -> str:
    """A difference, always with its sign."""
    text = number(value)
    return text if text.startswith(("−", MISSING)) or value == 0 else f"+{text}"


def size(value: float) -> str:
    """Bytes in binary units, as file systems and budgets count them.

    Example:
        >>> size(999), size(1536), size(1_234_567)
        ('999 B', '1.50 KiB', '1.18 MiB')
    """
    return cost("size", value)


def cost(kind: str, value: float) -> str:
    """A cost in its kind's unit; the page and the terminal both print it so.

    A kind that this version does not know, in an old run, has no unit.

    Example:
        >>> cost("size", 2048.0), cost("latency", 0.0123), cost("effective", 1.5), cost("avg_bits", 3.5)
        ('2.00 KiB', '12.3 ms', '1.5x', '3.5')
    """
    if kind not in COST_KINDS or not math.isfinite(value):
        return number(value)
    display = COST_KINDS[kind].display
    fitting = [(unit, factor) for unit, factor in display.units if abs(value) >= factor]
    unit, factor = fitting[-1] if fitting else display.units[0]
    is_first = unit == display.units[0][0]
    if display.decimals is None or is_first:
        return f"{number(value / factor)}{unit}"
    return f"{value / factor:.{display.decimals}f}{unit}"


def cost_name(kind: str) -> str:
    """What a kind of cost is called in a table."""
    return COST_KINDS[kind].label if kind in COST_KINDS else kind


def cost_axis(kind: str) -> tuple[str, float]:
    """The label of an axis of costs, and by what a cost is divided to lie on it.

    A figure has one unit for all of its values, where a table chooses one for each.

    Example:
        >>> cost_axis("size"), cost_axis("avg_bits")
        (('size, KiB', 1024.0), ('bits per weight', 1.0))
    """
    if kind not in COST_KINDS or not COST_KINDS[kind].display.axis:
        return cost_name(kind), 1.0
    display = COST_KINDS[kind].display
    return f"{cost_name(kind)},{display.axis}", dict(display.units)[display.axis]


def duration(seconds: float) -> str:
    """How long something takes: seconds below two minutes, then minutes, then hours.

    Example:
        >>> duration(1.23), duration(150), duration(9000)
        ('1.2 s', '2.5 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def percent(value: float | None) -> str:
    """A share in per cent.

    Example:
        >>> percent(0.1234), percent(None), percent(-0.00001)
        ('12.3 %', '–', '−0.001 %')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{number(100 * value, 3)} %"
