"""Scope rules: which quantizers a user means by a name, a glob or a regular expression."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import regex

from raysearch.errors import PlacementError
from raysearch.records import QuantizationPoint
from raysearch.unknown_keys import nearest_names

EXPRESSION = "re:"
SECONDS = 2.0
"""Of the processor, that an expression may take for all names: a fair one takes microseconds a name."""

_TARGETS, _IGNORED = "placement.target_scopes", "placement.ignored_scopes"


def match(pattern: str, points: Iterable[QuantizationPoint], option: str) -> list[QuantizationPoint]:
    """Points whose id, or weights whose layer, fits a name, a glob or a regular expression.

    `"fc"` means the weights of the layer fc, `"fc.input"` its input, `"blocks.*"` all points below blocks,
    `"re:[kq]_proj"` whatever the expression finds in. A tied weight is found by the name of any
    layer that holds it.

    Args:
        pattern: a name, a glob, or "re:" and a regular expression.
        points: those that may be meant.
        option: the setting that the pattern stands in, for messages.

    Raises:
        PlacementError: nothing fits (the nearest known names are told), or the expression is none.
    """
    every = list(points)
    fits = matcher(pattern, option)
    matches = [point for point in every if any(fits(name) for name in names_of(point))]
    if not matches:
        names = sorted({name for point in every for name in names_of(point)} - {""})
        near = nearest_names(pattern, names, count=3) or names[:5]
        raise PlacementError(
            f"{option} names '{pattern}', which fits no layer or quantizer of this model. Nearest: "
            f"{', '.join(near)}. `raysearch inspect` lists all {len(every)} quantizers."
        )
    return matches


def matcher(pattern: str, option: str) -> Callable[[str], object]:
    """The test of a name that a pattern stands for.

    Raises:
        PlacementError: the pattern is no regular expression, though it says so; or, when a name is tested, it
            takes more than `SECONDS` for all names.
    """
    if not pattern.startswith(EXPRESSION):
        return lambda name: fnmatchcase(name, pattern)
    text = pattern.removeprefix(EXPRESSION)
    try:
        # What is an expression is said by Python's own module, which knows no limit of time.
        re.compile(text)
        compiled = regex.compile(text)
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        raise PlacementError(
            f"{option} has '{pattern}', which is no regular expression: {error}. Mend it, or write a name or "
            f"a glob without '{EXPRESSION}'."
        ) from error
    spent = 0.0

    def fits(name: str) -> object:
        nonlocal spent
        began = time.process_time()
        try:
            return compiled.search(name, timeout=max(SECONDS - spent, 1e-3))
        except TimeoutError as error:
            raise PlacementError(
                f"{option} has '{pattern}', which has no answer for '{name:.60}' within {SECONDS:g} seconds: "
                f"where a repeat or a choice is repeated, as in '(a+)+' or '(a|aa)*', each letter of a name "
                f"can double the time. Repeat it once, or write a glob."
            ) from error
        finally:
            spent += time.process_time() - began

    return fits


def names_of(point: QuantizationPoint) -> set[str]:
    """The names under which a scope finds a point."""
    if point.kind == "activation":
        return {point.id}
    layers = {site.module for site in point.sites}
    parameters = {f"{site.module}.{site.name}" if site.module else site.name for site in point.sites}
    return {point.id, *parameters, *layers}


def select(
    points: Mapping[str, QuantizationPoint], targets: Sequence[str], ignored: Sequence[str]
) -> dict[str, QuantizationPoint]:
    """The points that `targets` fit (all, if there are none) and `ignored` do not.

    Args:
        points: all points of the model.
        targets: scopes that alone are quantized.
        ignored: scopes that stay float.

    Raises:
        PlacementError: a pattern fits nothing, or no weight is left.
    """
    chosen = set(points)
    if targets:
        chosen = _ids(targets, points, _TARGETS)
    chosen -= _ids(ignored, points, _IGNORED)
    left = {name: point for name, point in points.items() if name in chosen}
    if not any(point.kind == "weight" for point in left.values()):
        rules = [option for option, scopes in ((_TARGETS, targets), (_IGNORED, ignored)) if scopes]
        raise PlacementError(
            f"{' and '.join(rules)} leaves no weight to quantize; name {'more' if targets else 'fewer'} "
            f"layers."
        )
    return {name: _without_lost_input(point, chosen) for name, point in left.items()}


def _ids(patterns: Sequence[str], points: Mapping[str, QuantizationPoint], option: str) -> set[str]:
    return {point.id for pattern in patterns for point in match(pattern, points.values(), option)}


def _without_lost_input(point: QuantizationPoint, chosen: set[str]) -> QuantizationPoint:
    # An input that stays float counts as float in every cost.
    return point if point.input_point in chosen else replace(point, input_point="")
