"""Overrides: what a user sets for single layers or quantizers, by name, glob or regular expression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

from raysearch.errors import PlacementError
from raysearch.placement.profile import GRANULARITIES, MODES
from raysearch.placement.scopes import check_widths, match
from raysearch.records import Granularity, QuantizationPoint, QuantizerSpec


@dataclass(frozen=True)
class Override:
    """What is set for a point; None leaves what it would be without.

    Attributes:
        bits: widths it may take.
        mode: "symmetric" or "asymmetric".
        granularity: "per_channel" or "per_tensor".
        signed: of a symmetric quantizer.
        pinned: its only width.
    """

    bits: tuple[int, ...] | None = None
    mode: str | None = None
    granularity: str | None = None
    signed: bool | None = None
    pinned: int | None = None

    @property
    def widths(self) -> tuple[int, ...] | None:
        """The widths that are left, ascending."""
        return (self.pinned,) if self.pinned is not None else self.bits


def read_overrides(
    pins: Mapping[str, int],
    overrides: Mapping[str, Mapping[str, Any]],
    points: Mapping[str, QuantizationPoint],
) -> dict[str, Override]:
    """Quantizer id → what pins and overrides set for it; overrides win over pins, later ones over earlier.

    Raises:
        PlacementError: a pattern fits nothing, a key is unknown, or a value is not allowed.
    """
    found: dict[str, Override] = {}
    for pattern, width in pins.items():
        check_widths([width], f"placement.pins['{pattern}']")
        for point in match(pattern, points.values(), "placement.pins"):
            found[point.id] = Override(pinned=width)
    for pattern, values in overrides.items():
        option = f"placement.overrides['{pattern}']"
        changes = _checked(option, values)
        for point in match(pattern, points.values(), "placement.overrides"):
            before = found.get(point.id, Override())
            if "bits" in changes and "pinned" not in changes:
                before = replace(before, pinned=None)  # the later rule frees what an earlier one pinned
            found[point.id] = _fits(option, point, replace(before, **changes))
    return found


def _checked(option: str, values: Mapping[str, Any]) -> dict[str, Any]:
    keys = [field.name for field in fields(Override)]
    changes: dict[str, Any] = {}
    for key, value in values.items():
        where = f"{option}.{key}"
        if key not in keys:
            near = get_close_matches(key, keys, n=1, cutoff=0.3)
            hint = f"; the nearest known one is '{near[0]}'" if near else ""
            raise PlacementError(f"{where} is unknown{hint}. Known: {', '.join(keys)}.")
        if value is None:
            continue
        if key == "bits":
            changes[key] = check_widths([value] if isinstance(value, int) else value, where)
        elif key == "pinned":
            changes[key] = check_widths([value], where)[0]
        elif key == "signed":
            _one_of(where, value, (True, False))
            changes[key] = value
        else:
            _one_of(where, value, MODES if key == "mode" else GRANULARITIES)
            changes[key] = value
    return changes


def _one_of(where: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise PlacementError(f"{where} is {value!r}; allowed: {', '.join(map(str, allowed))}.")


def _fits(option: str, point: QuantizationPoint, override: Override) -> Override:
    if point.kind == "activation" and override.granularity == "per_channel":
        raise PlacementError(
            f"{option} sets '{point.id}' to per_channel; an activation has one scale per tensor, since its "
            f"readers may see other shapes and integer kernels take no other. Remove granularity, or write a "
            f"pattern that fits weights only."
        )
    if override.bits and override.pinned is not None and override.pinned not in override.bits:
        raise PlacementError(
            f"{option} pins '{point.id}' to {override.pinned} bits, but bits allows "
            f"{', '.join(map(str, override.bits))}."
        )
    mode = override.mode or default_mode(point)
    if override.signed is not None and mode == "asymmetric":
        raise PlacementError(
            f"{option} sets signed of '{point.id}', which is asymmetric; only a symmetric quantizer has a "
            f'sign. Set mode = "symmetric" as well.'
        )
    return override


def default_mode(point: QuantizationPoint) -> str:
    """The mode of a point for which nothing is set."""
    return "symmetric" if point.kind == "weight" else "asymmetric"


def apply_spec(
    point: QuantizationPoint, mode: str, signed: bool | None, granularity: Granularity
) -> QuantizationPoint:
    """The point with a kind of quantizer; `spec` stays None where nothing differs from the default.

    Args:
        point: as placement found it.
        mode: "symmetric" or "asymmetric".
        signed: of a symmetric quantizer; None takes it from the data.
        granularity: which elements share a scale.
    """
    is_default_sign = signed is None or (point.kind == "weight" and signed)
    if mode == default_mode(point) and is_default_sign:
        return replace(point, spec=None, granularity=granularity)
    spec = QuantizerSpec(mode="symmetric" if mode == "symmetric" else "asymmetric", signed=signed)
    return replace(point, spec=spec, granularity=granularity)
