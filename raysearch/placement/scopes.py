"""Scope rules: which names a user means, and what widths a group may take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from raysearch.errors import PlacementError
from raysearch.quantizer import MAX_BITS, MIN_BITS
from raysearch.records import QuantizationPoint


def match(pattern: str, points: Iterable[QuantizationPoint], option: str) -> list[QuantizationPoint]:
    """Points whose id, or weights whose layer, fits a name or a glob.

    `"fc"` means the weights of the layer fc, `"fc.input"` its input, `"blocks.*"` all points below blocks.
    A tied weight is found by the name of any layer that holds it.

    Raises:
        PlacementError: nothing fits; names the nearest known names.
    """
    every = list(points)
    found = [point for point in every if any(fnmatchcase(name, pattern) for name in _names(point))]
    if not found:
        names = sorted({name for point in every for name in _names(point)} - {""})
        near = get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:5]
        raise PlacementError(
            f"{option} names '{pattern}', which fits no layer or quantizer of this model. Nearest: "
            f"{', '.join(near)}. `raysearch inspect` lists all {len(every)} quantizers."
        )
    return found


def _names(point: QuantizationPoint) -> set[str]:
    if point.kind == "activation":
        return {point.id}
    held = {f"{site.module}.{site.name}" if site.module else site.name for site in point.sites}
    return {point.id, *held, *(site.module for site in point.sites)}


def check_widths(widths: Sequence[int], option: str) -> tuple[int, ...]:
    """Widths ascending, without duplicates.

    Raises:
        PlacementError: none is given, or one is outside 2–8.
    """
    for width in widths:
        if not MIN_BITS <= width <= MAX_BITS:
            raise PlacementError(f"{option} has the bit-width {width}; allowed: {MIN_BITS} to {MAX_BITS}.")
    if not widths:
        raise PlacementError(f"{option} is empty; give at least one bit-width of {MIN_BITS} to {MAX_BITS}.")
    return tuple(sorted(set(widths)))


def pinned_widths(pins: Mapping[str, int], points: Mapping[str, QuantizationPoint]) -> dict[str, int]:
    """Quantizer id → the one width that a pin leaves it; later pins win.

    Raises:
        PlacementError: a pin fits nothing, or its width is outside 2–8.
    """
    widths: dict[str, int] = {}
    for pattern, width in pins.items():
        check_widths([width], f"placement.pins['{pattern}']")
        for point in match(pattern, points.values(), "placement.pins"):
            widths[point.id] = width
    return widths
