"""`init_precision("manual")`: widths or schemes by scope, in NNCF's file format, with its scopes or ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raysearch.errors import ConfigError, PlacementError
from raysearch.placement.scopes import match
from raysearch.records import BitAssignment, QuantizationPoint, QuantizerSetup, Scheme
from raysearch.records.typed_json import parsed
from raysearch.unknown_keys import nearest

_NNCF_LEVEL = re.compile(r"\[([^\]]+)\]")


def read_entries(value: object) -> list[tuple[Scheme, str]]:
    """`[[bits, scope], …]`, a mapping with the key `bitwidth_per_scope`, or the path of such a file.

    The bits of an entry are a width, or a scheme as "4g64".

    Raises:
        ConfigError: it is none of them.
        PlacementError: there is no such width or scheme.
    """
    if isinstance(value, str | Path):
        try:
            value = parsed(Path(value).read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(f"the file of bitwidth_per_scope '{value}' cannot be read: {error}.") from error
    if isinstance(value, Mapping):
        value = value.get("bitwidth_per_scope")
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ConfigError(f"bitwidth_per_scope is {value!r}; give [[bits, scope], …] or a JSON file of it.")
    return [_read_entry(entry) for entry in value]


def _read_entry(entry: Any) -> tuple[Scheme, str]:
    value, scope = entry if isinstance(entry, list | tuple) and len(entry) == 2 else (None, None)
    # True is an integer, and no width.
    if not isinstance(value, int | str) or isinstance(value, bool) or not isinstance(scope, str):
        raise ConfigError(
            f"bitwidth_per_scope holds {entry!r}; an entry is [bits, scope], such as [4, 'conv1.weight'] or "
            f"['4g64', 'fc.weight']."
        )
    try:
        return Scheme.of(value), scope
    except PlacementError as error:
        raise PlacementError(f"bitwidth_per_scope holds {entry!r}: {error}") from error


def assign_by_scope(
    setup: QuantizerSetup, present: BitAssignment, entries: Iterable[tuple[Scheme, str]]
) -> BitAssignment:
    """The present schemes, overridden by the entries; all quantizers that a scope fits are meant.

    A scope is NNCF's printed id ("ResNet/Conv2d[conv1]/conv2d_0|WEIGHT"), our id ("conv1.weight", also with
    "|WEIGHT" or "|INPUT0" behind it), a layer, a glob, or a part of an id.

    Args:
        setup: groups and the schemes they admit.
        present: the schemes of what no entry names.
        entries: (scheme, scope).

    Raises:
        PlacementError: a scope fits nothing, a scheme is not one of its quantizer's, or two entries
            contradict each other.
    """
    schemes: dict[str, Scheme] = dict(present.schemes)
    # Group → the entry that set it, to find entries that contradict each other.
    entry_of: dict[str, tuple[Scheme, str]] = {}
    for scheme, scope in entries:
        for point in find_points(setup, scope):
            group = setup.group_of(point.id)
            if scheme not in group.schemes:
                raise PlacementError(
                    f"bitwidth_per_scope gives '{point.id}' (scope '{scope}') {scheme.in_words}; admissible: "
                    f"{', '.join(map(str, group.schemes))}."
                )
            other, other_scope = entry_of.setdefault(group.id, (scheme, scope))
            if other != scheme:
                raise PlacementError(
                    f"bitwidth_per_scope gives '{point.id}' {scheme.in_words} by '{scope}' and "
                    f"{other.in_words} by '{other_scope}'; they share one scheme."
                )
            schemes[group.id] = scheme
    return BitAssignment({name: schemes[name] for name in setup.groups if name in schemes})


def find_points(setup: QuantizerSetup, scope: str) -> list[QuantizationPoint]:
    """The quantizers a scope means.

    Raises:
        PlacementError: it fits none; names the nearest id.
    """
    text, _, port = scope.partition("|")
    kinds = {"WEIGHT": ("weight",), "": ("weight", "activation")}.get(port.upper(), ("activation",))
    points = [p for p in setup.points.values() if p.kind in kinds]
    names = [text]
    levels = _NNCF_LEVEL.findall(text) if "/" in text else []
    if levels:
        names.append(".".join(levels))
    both_kinds = kinds == ("weight", "activation")
    for name in names:
        by_layer = [p for p in points if name in {site.module for site in p.sites}]
        if by_layer and not both_kinds:
            return by_layer
        try:
            return match(name, points, "bitwidth_per_scope")
        except PlacementError:
            continue
    within = [p for p in points if text in p.id]
    if within:
        return within
    ids = [p.id for p in points] or list(setup.points)
    raise PlacementError(
        f"bitwidth_per_scope names '{scope}', which fits no quantizer; the nearest is "
        f"'{nearest(names[-1], ids)}'."
    )


def to_entries(setup: QuantizerSetup, assignment: BitAssignment) -> list[list[Any]]:
    """An assignment in NNCF's file format; `read_entries` reads it back."""
    tails = {"weight": "WEIGHT", "activation": "INPUT0"}
    schemes = assignment.per_point(setup)
    return [[scheme.as_json, f"{name}|{tails[setup.points[name].kind]}"] for name, scheme in schemes.items()]
