"""Weights that could be quantized and stay float: by a scope, a profile, or what they are fused with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from raysearch.errors import PlacementError
from raysearch.placement.points import PointTable
from raysearch.placement.profile import Profile
from raysearch.records import QuantizationPoint

BY_SCOPE = "left out by placement.target_scopes or ignored_scopes"


@dataclass(frozen=True)
class LeftOut:
    """Why a weight stays float.

    Attributes:
        reason: for people.
        is_chosen: whether the settings say so, and not the profile.
    """

    reason: str
    is_chosen: bool


def left_out(
    model: nn.Module, table: PointTable, points: Mapping[str, QuantizationPoint], profile: Profile
) -> dict[str, LeftOut]:
    """Weight → why it stays float.

    Args:
        model: the float model.
        table: all points.
        points: those that the scopes leave.
        profile: of the hardware.

    Raises:
        PlacementError: no weight is left.
    """
    reasons: dict[str, LeftOut] = {}
    weights = [name for name, point in table.points.items() if point.kind == "weight"]
    for name in weights:
        if name not in points:
            reasons[name] = LeftOut(BY_SCOPE, is_chosen=True)
            continue
        classes = _classes(model, points[name])
        reason = profile.why_float(table.kinds[name], points[name], classes)
        if reason:
            reasons[name] = LeftOut(reason, is_chosen=False)
    for fusion in table.fusions:
        missing = next((name for name in fusion.weights if name in reasons), "")
        if missing:
            is_chosen = reasons[missing].is_chosen
            reason = (
                f"{missing}, which the profile '{profile.name}' fuses with it, is {_short(reasons[missing])}"
            )
            with_it = LeftOut(reason, is_chosen)
            reasons |= {name: with_it for name in fusion.weights if name not in reasons}
    if len(reasons) == len(weights):
        names_of: dict[str, list[str]] = {}
        for name, entry in reasons.items():
            names_of.setdefault(entry.reason, []).append(name)
        texts = [f"{_few(names)} ({reason})" for reason, names in names_of.items()]
        raise PlacementError(
            f"no weight is left to quantize. Float stay {'; '.join(texts[:3])}. "
            f"Change placement.target_scopes or ignored_scopes, or placement.profile."
        )
    return reasons


def _few(names: Sequence[str]) -> str:
    """The first of some weights, and how many more there are."""
    return f"'{names[0]}'" if len(names) == 1 else f"'{names[0]}' and {len(names) - 1} more"


def _classes(model: nn.Module, point: QuantizationPoint) -> set[str]:
    """Names of the classes that hold a weight, of those that all of its modules are."""
    names = [{base.__name__ for base in type(model.get_submodule(s.module)).__mro__} for s in point.sites]
    return set.intersection(*names)


def _short(entry: LeftOut) -> str:
    return entry.reason if entry.reason == BY_SCOPE else f"left float ({entry.reason})"
