"""Overrides: what a user sets for single layers or quantizers, by name, glob or regular expression."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from raysearch.config.placement import OverrideConfig, PlacementConfig
from raysearch.errors import PlacementError
from raysearch.placement.fusion import Fusion
from raysearch.placement.scopes import match
from raysearch.records import Granularity, QuantizationPoint, QuantizerSpec, Scheme


def read_overrides(
    settings: PlacementConfig, points: Mapping[str, QuantizationPoint]
) -> dict[str, OverrideConfig]:
    """Quantizer id → what pins and overrides set for it; overrides win over pins, later ones over earlier.

    Raises:
        PlacementError: a pattern fits nothing, or what is set for a point contradicts itself.
    """
    result: dict[str, OverrideConfig] = {}
    for pattern, scheme in settings.pins.items():
        for point in match(pattern, points.values(), "placement.pins"):
            pinned = OverrideConfig(pinned=scheme)
            _check_fits(f"placement.pins['{pattern}']", point, pinned)
            result[point.id] = pinned
    for pattern, override in settings.overrides.items():
        changes = {key: value for key, value in override if value is not None}
        for point in match(pattern, points.values(), "placement.overrides"):
            before = result.get(point.id, OverrideConfig())
            if "bits" in changes and "pinned" not in changes:
                # The later rule frees what an earlier one pinned.
                before = before.model_copy(update={"pinned": None})
            merged = before.model_copy(update=changes)
            _check_fits(f"placement.overrides['{pattern}']", point, merged)
            result[point.id] = merged
    return result


def share_overrides(
    overrides: Mapping[str, OverrideConfig], fusions: Iterable[Fusion]
) -> dict[str, OverrideConfig]:
    """The overrides where weights that are fused have the mode and granularity that is set for some of them.

    Raises:
        PlacementError: what is set for two of them contradicts.
    """
    shared = dict(overrides)
    for fusion in fusions:
        changes: dict[str, object] = {}
        for field in ("mode", "granularity", "signed"):
            values = {
                name: getattr(overrides[name], field)
                for name in fusion.weights
                if name in overrides and getattr(overrides[name], field) is not None
            }
            if len(set(values.values())) > 1:
                listing = ", ".join(f"{name} to {value}" for name, value in values.items())
                raise PlacementError(
                    f"placement.overrides set the {field} of {listing}, but the target fuses these: "
                    f"{fusion.reason}. Set one for all of them, or choose another placement.profile."
                )
            if values:
                changes[field] = next(iter(values.values()))
        if changes:
            for name in fusion.weights:
                before = shared.get(name, OverrideConfig())
                shared[name] = before.model_copy(update=changes)
    return shared


def _check_fits(option: str, point: QuantizationPoint, override: OverrideConfig) -> None:
    if point.kind == "activation" and override.granularity == "per_channel":
        raise PlacementError(
            f"{option} sets '{point.id}' to per_channel; an activation has one scale per tensor, since its "
            f"readers may see other shapes and integer kernels take no other. Remove granularity, or write a "
            f"pattern that fits weights only."
        )
    extended = [scheme for scheme in override.schemes or () if not scheme.is_plain]
    if point.kind == "activation" and extended:
        raise PlacementError(
            f"{option} sets '{point.id}' to {', '.join(map(str, extended))}; an activation takes a bit-width "
            f"alone, since it has one scale per tensor. Set mode for a zero point, or write a pattern that "
            f"fits weights only."
        )
    allowed = override.model_copy(update={"pinned": None}).schemes
    if allowed and override.pinned is not None and override.pinned not in allowed:
        raise PlacementError(
            f"{option} pins '{point.id}' to {Scheme.of(override.pinned).in_words}, but bits allows "
            f"{', '.join(map(str, allowed))}."
        )
    mode = override.mode or default_mode(point)
    if override.signed is not None and mode == "asymmetric":
        raise PlacementError(
            f"{option} sets signed of '{point.id}', which is asymmetric; only a symmetric quantizer has a "
            f'sign. Set mode = "symmetric" as well.'
        )


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
