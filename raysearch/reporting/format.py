"""Numbers and costs as people read them, on the page and on a terminal alike."""

from __future__ import annotations

import math
from collections.abc import Callable

MISSING = "–"


def number(value: object) -> str:
    """A number with five significant digits; whole numbers in full, text unchanged.

    Example:
        >>> number(0.123456789), number(1200000.0), number(float("nan")), number("a")
        ('0.12346', '1,200,000', '–', 'a')
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
    return f"{value:.5g}".replace("-", "−")


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
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if math.isfinite(value) and abs(value) >= factor:
            return f"{value / factor:.2f} {unit}"
    return f"{value:.0f} B" if math.isfinite(value) else number(value)


def operations(value: float) -> str:
    """A count of operations with a decimal prefix; below a thousand, the number.

    Example:
        >>> operations(2.5e12), operations(12.0)
        ('2.50 T', '12')
    """
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if math.isfinite(value) and abs(value) >= factor:
            return f"{value / factor:.2f} {unit}"
    return number(value)


def latency(value: float) -> str:
    """Seconds of a forward, in the unit that gives a number of one or more.

    Example:
        >>> latency(0.0123), latency(4e-5)
        ('12.3 ms', '40 µs')
    """
    if not math.isfinite(value):
        return number(value)
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(value) >= factor:
            return f"{number(value / factor)} {unit}"
    return f"{number(value * 1e9)} ns"


def ratio(value: float) -> str:
    """A ratio, as in "1.5x"."""
    return f"{number(value)}x" if math.isfinite(value) else number(value)


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


_COST_FORMATS: dict[str, Callable[[float], str]] = {
    "size": size,
    "activation_memory": size,
    "bops": operations,
    "latency": latency,
    "effective": ratio,
}
_AXIS_UNITS = {
    "size": ("KiB", 2**10),
    "activation_memory": ("KiB", 2**10),
    "bops": ("G", 1e9),
    "latency": ("ms", 1e-3),
}
_COST_NAMES = {
    "avg_bits": "bits per weight",
    "act_bits": "bits per activation",
    "size": "size",
    "bops": "bit operations",
    "effective": "effective compression",
    "activation_memory": "activation memory",
    "latency": "latency",
}


def cost(kind: str, value: float) -> str:
    """A cost in its kind's unit; the page and the terminal both print it so.

    Example:
        >>> cost("size", 2048.0), cost("latency", 0.0123), cost("avg_bits", 3.5)
        ('2.00 KiB', '12.3 ms', '3.5')
    """
    return _COST_FORMATS.get(kind, number)(value)


def cost_name(kind: str) -> str:
    """What a kind of cost is called in a table."""
    return _COST_NAMES.get(kind, kind)


def cost_axis(kind: str) -> tuple[str, float]:
    """The label of an axis of costs, and by what a cost is divided to lie on it.

    A figure has one unit for all of its values, where a table chooses one for each.

    Example:
        >>> cost_axis("size"), cost_axis("avg_bits")
        (('size, KiB', 1024), ('bits per weight', 1.0))
    """
    name = cost_name(kind)
    if kind not in _AXIS_UNITS:
        return name, 1.0
    unit, factor = _AXIS_UNITS[kind]
    return f"{name}, {unit}", factor
