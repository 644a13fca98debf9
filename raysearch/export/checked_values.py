"""Values of config.json, each checked before it is used; a ValueError says what is wrong."""

from __future__ import annotations

import math
from typing import Any

MAX_ELEMENTS = 1 << 40


def checked_shape(values: Any, name: str = "an activation") -> tuple[int, ...]:
    """A shape that torch can take: its sizes, those of 0 left out, multiply to less than 2^40."""
    shape = tuple(map(checked_size, values))
    if len(shape) > 16 or math.prod(size for size in shape if size) >= MAX_ELEMENTS:
        raise ValueError(f"'{name:.100}' of shape {list(shape[:16])!r:.200} is larger than any tensor")
    return shape


def checked_flag(value: Any) -> bool:
    """A boolean."""
    if not isinstance(value, bool):
        raise ValueError(f"{value!r:.50} is neither true nor false")
    return value


def checked_number(value: Any) -> float:
    """A finite number that float32 holds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e38:
        raise ValueError(f"{value!r:.50} is no number of float32")
    return float(value)


def checked_step(value: Any) -> float:
    """A positive step of a grid."""
    if not checked_number(value) > 1e-45:
        raise ValueError(f"{value!r:.50} is no step of a grid: it must be positive")
    return float(value)


def checked_integer(value: Any) -> int:
    """An integer of 32 bits."""
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 1 << 31:
        raise ValueError(f"{value!r:.50} is no integer of 32 bits")
    return value


def checked_size(value: Any) -> int:
    """A non-negative integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r:.50} is no non-negative integer")
    return value
