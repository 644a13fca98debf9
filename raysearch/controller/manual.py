"""`init_precision("manual")`: widths by scope, in NNCF's file format, with its scopes or ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raysearch.errors import ConfigError, PlacementError
from raysearch.placement.scopes import match
from raysearch.records import BitAssignment, QuantizationPoint, QuantizerSetup
from raysearch.unknown_keys import nearest

_NNCF_LEVEL = re.compile(r"\[([^\]]+)\]")


def read_entries(value: object) -> list[tuple[int, str]]:
    """`[[bits, scope], …]`, a mapping with the key `bitwidth_per_scope`, or the path of such a file.

    Raises:
        ConfigError: it is none of them.
    """
    if isinstance(value, str | Path):
        try:
            value = json.loads(Path(value).read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"the file of bitwidth_per_scope '{value}' cannot be read: {error}.") from error
    if isinstance(value, Mapping):
        value = value.get("bitwidth_per_scope")
    entries: list[tuple[int, str]] = []
    for entry in value if isinstance(value, Sequence) and not isinstance(value, str) else [None]:
        width, scope = entry if isinstance(entry, list | tuple) and len(entry) == 2 else (None, None)
        if not isinstance(width, int) or isinstance(width, bool) or not isinstance(scope, str):
            raise ConfigError(
                f"bitwidth_per_scope holds {entry!r}; an entry is [bits, scope], such as [4, 'conv1.weight']."
            )
        entries.append((width, scope))
    return entries


def assign_by_scope(
    setup: QuantizerSetup, present: BitAssignment, entries: Iterable[tuple[int, str]]
) -> BitAssignment:
    """The present widths, overridden by the entries; all quantizers that a scope fits are meant.

    A scope is NNCF's printed id ("ResNet/Conv2d[conv1]/conv2d_0|WEIGHT"), our id ("conv1.weight", also with
    "|WEIGHT" or "|INPUT0" behind it), a layer, a glob, or a part of an id.

    Raises:
        PlacementError: a scope fits nothing, a width is not one of its quantizer's, or two entries
            contradict each other.
    """
    bits: dict[str, int] = dict(present.bits)
    by: dict[str, tuple[int, str]] = {}
    for width, scope in entries:
        for point in find_points(setup, scope):
            group = setup.group_of(point.id)
            if width not in group.bit_widths:
                raise PlacementError(
                    f"bitwidth_per_scope gives '{point.id}' (scope '{scope}') {width} bits; admissible: "
                    f"{', '.join(map(str, group.bit_widths))}."
                )
            if group.id in by and by[group.id][0] != width:
                raise PlacementError(
                    f"bitwidth_per_scope gives '{point.id}' {width} bits by '{scope}' and "
                    f"{by[group.id][0]} bits by '{by[group.id][1]}'; they share one width."
                )
            by[group.id] = (width, scope)
            bits[group.id] = width
    return BitAssignment({name: bits[name] for name in setup.groups if name in bits})


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
    for name in names:
        by_layer = [p for p in points if name in {site.module for site in p.sites}]
        if by_layer and kinds != ("weight", "activation"):
            return by_layer
        try:
            return match(name, points, "bitwidth_per_scope")
        except PlacementError:
            continue
    within = [p for p in points if text in p.id]
    if within:
        return within
    known = [p.id for p in points] or list(setup.points)
    raise PlacementError(
        f"bitwidth_per_scope names '{scope}', which fits no quantizer; the nearest is "
        f"'{nearest(names[-1], known)}'."
    )


def to_entries(setup: QuantizerSetup, assignment: BitAssignment) -> list[list[Any]]:
    """An assignment in NNCF's file format; `read_entries` reads it back."""
    tails = {"weight": "WEIGHT", "activation": "INPUT0"}
    widths = assignment.per_point(setup)
    return [[bits, f"{name}|{tails[setup.points[name].kind]}"] for name, bits in widths.items()]
