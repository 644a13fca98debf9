"""Numbers as people read them."""

from __future__ import annotations

import math

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
    """Bytes in decimal units.

    Example:
        >>> size(999), size(1_234_567)
        ('999 B', '1.23 MB')
    """
    if not math.isfinite(value):
        return number(value)
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.2f} {unit}"
    return f"{value:.0f} B"


def quantity(kind: str, value: float) -> str:
    """A cost in its kind's usual unit.

    Example:
        >>> quantity("latency", 0.0123), quantity("activation_memory", 2048.0), quantity("effective", 1.5)
        ('12.3 ms', '2.05 kB', '1.5x')
    """
    if not math.isfinite(value):
        return number(value)
    if kind in ("size", "activation_memory"):
        return size(value)
    if kind == "latency":
        for unit, factor in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
            if abs(value) >= factor:
                return f"{number(value / factor)} {unit}"
        return f"{number(value * 1e9)} ns"
    if kind == "effective":
        return f"{number(value)}x"
    if kind == "bops":
        for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if abs(value) >= factor:
                return f"{value / factor:.2f} {unit}"
    return number(value)


def seconds(value: float) -> str:
    """A duration: seconds below two minutes, then minutes, then hours."""
    if value < 120:
        return f"{value:.1f} s"
    if value < 7200:
        return f"{value / 60:.1f} min"
    return f"{value / 3600:.1f} h"
