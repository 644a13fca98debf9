"""Scope rules: which quantizers a user means by a name, a glob or a regular expression."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase

from raysearch.errors import PlacementError
from raysearch.quantizer import MAX_BITS, MIN_BITS
from raysearch.records import QuantizationPoint

EXPRESSION = "re:"
_TARGETS, _IGNORED = "placement.target_scopes", "placement.ignored_scopes"


def match(pattern: str, points: Iterable[QuantizationPoint], option: str) -> list[QuantizationPoint]:
    """Points whose id, or weights whose layer, fits a name, a glob or a regular expression.

    `"fc"` means the weights of the layer fc, `"fc.input"` its input, `"blocks.*"` all points below blocks,
    `"re:[kq]_proj"` whatever the expression finds in. A tied weight is found by the name of any
    layer that holds it.

    Raises:
        PlacementError: nothing fits (the nearest known names are told), or the expression is none.
    """
    every = list(points)
    fits = matcher(pattern, option)
    found = [point for point in every if any(fits(name) for name in names_of(point))]
    if not found:
        names = sorted({name for point in every for name in names_of(point)} - {""})
        near = get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:5]
        raise PlacementError(
            f"{option} names '{pattern}', which fits no layer or quantizer of this model. Nearest: "
            f"{', '.join(near)}. `raysearch inspect` lists all {len(every)} quantizers."
        )
    return found


def matcher(pattern: str, option: str) -> Callable[[str], object]:
    """The test of a name that a pattern stands for.

    Raises:
        PlacementError: the pattern is no regular expression, though it says so.
    """
    if not pattern.startswith(EXPRESSION):
        return lambda name: fnmatchcase(name, pattern)
    try:
        return re.compile(pattern.removeprefix(EXPRESSION)).search
    except re.error as error:
        raise PlacementError(
            f"{option} has '{pattern}', which is no regular expression: {error}. Mend it, or write a name or "
            f"a glob without '{EXPRESSION}'."
        ) from error


def names_of(point: QuantizationPoint) -> set[str]:
    """The names under which a scope finds a point."""
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


def select(
    points: Mapping[str, QuantizationPoint], targets: Sequence[str], ignored: Sequence[str]
) -> dict[str, QuantizationPoint]:
    """The points that `targets` fit (all, if there are none) and `ignored` do not.

    Raises:
        PlacementError: a pattern fits nothing, or no weight is left.
    """
    wanted = set(points)
    if targets:
        wanted = {p.id for pattern in targets for p in match(pattern, points.values(), _TARGETS)}
    wanted -= {p.id for pattern in ignored for p in match(pattern, points.values(), _IGNORED)}
    kept = {name: point for name, point in points.items() if name in wanted}
    if not any(point.kind == "weight" for point in kept.values()):
        told = " and ".join([_TARGETS] * bool(targets) + [_IGNORED] * bool(ignored))
        raise PlacementError(
            f"{told} leaves no weight to quantize; name {'more' if targets else 'fewer'} layers."
        )
    return {
        name: replace(point, input_point=point.input_point if point.input_point in wanted else "")
        for name, point in kept.items()
    }
