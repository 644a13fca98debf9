"""Widths: what the user and the profile leave each group, and which widths go together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from raysearch.errors import PlacementError
from raysearch.placement.overrides import Override, apply_spec, default_mode
from raysearch.placement.points import Points
from raysearch.placement.profile import WEIGHT_KINDS, Pairs, Profile
from raysearch.records import PER_TENSOR, QuantizationPoint, QuantizerGroup


@dataclass(frozen=True)
class WidthRules:
    """What decides about widths and kinds of quantizers.

    Attributes:
        weights: widths a weight may take where nothing else is set.
        activations: the same of activations.
        overrides: quantizer id → what is set for it.
        profile: of the hardware.
    """

    weights: tuple[int, ...]
    activations: tuple[int, ...]
    overrides: Mapping[str, Override]
    profile: Profile

    def default(self, point: QuantizationPoint) -> tuple[int, ...]:
        """Widths of a point for which nothing is set."""
        return self.weights if point.kind == "weight" else self.activations


def of_kind(found: Points, rules: WidthRules) -> dict[str, QuantizationPoint]:
    """The points with mode, sign and granularity as overrides and profile want them.

    Raises:
        PlacementError: an override contradicts the profile.
    """
    result: dict[str, QuantizationPoint] = {}
    for name, point in found.every.items():
        override = rules.overrides.get(name, Override())
        modes = rules.profile.modes(found.kinds[name], f"{point.kind}_modes")
        mode = override.mode or (default_mode(point) if default_mode(point) in modes else (*modes, "")[0])
        _check_profile(name, "mode", mode, modes, rules.profile, found.kinds[name])
        granularity = PER_TENSOR if override.granularity == "per_tensor" else point.granularity
        if point.kind == "weight":
            allowed = rules.profile.modes(found.kinds[name], "weight_granularity")
            if not override.granularity and "per_channel" not in allowed:
                granularity = PER_TENSOR
            _check_profile(name, "granularity", granularity.kind, allowed, rules.profile, found.kinds[name])
        result[name] = apply_spec(point, mode, override.signed, granularity)
    return result


def _check_profile(
    name: str, what: str, value: str, allowed: tuple[str, ...], profile: Profile, kinds: set[str]
) -> None:
    if value not in allowed:
        raise PlacementError(
            f"the {what} of '{name}' is {value or 'unset'}, but the profile '{profile.name}' allows "
            f"{', '.join(allowed) or 'none'} for {', '.join(sorted(kinds))}. Change the override, or "
            f"placement.profile."
        )


def make_groups(
    found: Points, points: Mapping[str, QuantizationPoint], rules: WidthRules
) -> tuple[dict[str, QuantizerGroup], dict[str, Pairs]]:
    """Groups with their widths, and weight id → pairs, where not every combination is allowed.

    Raises:
        PlacementError: members of a group, or user and profile, leave no width.
    """
    groups = {
        members[0]: QuantizerGroup(members[0], members, _group_widths(members, found, points, rules))
        for members in _members(found, points)
    }
    home = {name: group.id for group in groups.values() for name in group.points}
    links = {
        name: (home[name], home[point.input_point], rules.profile.pairs(found.kinds[name]))
        for name, point in points.items()
        if point.kind == "weight" and point.input_point
    }
    groups = _consistent(groups, links, rules.profile)
    _warn_single(groups, points, rules)
    coupled: dict[str, Pairs] = {}
    for name, (weight, activation, allowed) in links.items():
        every = [(w, a) for w in groups[weight].bit_widths for a in groups[activation].bit_widths]
        if any(pair not in allowed for pair in every):
            coupled[name] = frozenset(pair for pair in every if pair in allowed)
    return groups, coupled


def _members(found: Points, points: Mapping[str, QuantizationPoint]) -> list[tuple[str, ...]]:
    member_of = {name: [name] for name in points}
    order = {name: index for index, name in enumerate(points)}
    for a, b in found.partners:
        if a in points and b in points and member_of[a] is not member_of[b]:
            merged = sorted({*member_of[a], *member_of[b]}, key=order.__getitem__)
            for name in merged:
                member_of[name] = merged
    return [tuple(members) for name, members in member_of.items() if members[0] == name]


def _group_widths(
    members: tuple[str, ...], found: Points, points: Mapping[str, QuantizationPoint], rules: WidthRules
) -> tuple[int, ...]:
    asked = {m: w for m in members if (w := rules.overrides.get(m, Override()).widths) is not None}
    wanted = set(next(iter(asked.values()), rules.default(points[members[0]])))
    wanted = wanted.intersection(*asked.values())
    if not wanted:
        listing = ", ".join(f"{m} to {' or '.join(map(str, w))}" for m, w in asked.items())
        raise PlacementError(f"the placement rules set {listing}, but these must share one bit-width.")
    allowed = set(range(33))
    for name in members:
        if points[name].kind == "weight":
            allowed &= {w for w, _ in rules.profile.pairs(found.kinds[name])}
        else:
            allowed &= set(rules.profile.activations(found.kinds[name]))
    if not wanted & allowed:
        kinds = sorted(set().union(*(found.kinds[name] for name in members)))
        raise PlacementError(
            f"no bit-width is left for '{members[0]}' ({', '.join(kinds)}): you allow {_text(wanted)}, the "
            f"profile '{rules.profile.name}' allows {_text(allowed)}. Change placement.profile, or "
            f"{_setting(points[members[0]])} or an override."
        )
    return tuple(sorted(wanted & allowed))


def _consistent(
    groups: dict[str, QuantizerGroup], links: Mapping[str, tuple[str, str, Pairs]], profile: Profile
) -> dict[str, QuantizerGroup]:
    """Take away widths that have no partner on the other side, until none is left to take."""
    widths = {name: set(group.bit_widths) for name, group in groups.items()}
    changed = True
    while changed:
        changed = False
        for name, (weight, activation, allowed) in links.items():
            pairs = {(w, a) for w, a in allowed if w in widths[weight] and a in widths[activation]}
            if not pairs:
                raise PlacementError(
                    f"no pair of bit-widths is left for '{name}' and its input '{activation}': you leave "
                    f"{_text(widths[weight])} for the weight and {_text(widths[activation])} for the input, "
                    f"the profile '{profile.name}' allows (weight, input) "
                    f"{', '.join(map(str, sorted(allowed)))}. Change the widths, or placement.profile."
                )
            for group, index in ((weight, 0), (activation, 1)):
                kept = {pair[index] for pair in pairs}
                changed = changed or kept != widths[group]
                widths[group] = kept
    return {g.id: QuantizerGroup(g.id, g.points, tuple(sorted(widths[g.id]))) for g in groups.values()}


def _warn_single(
    groups: Mapping[str, QuantizerGroup], points: Mapping[str, QuantizationPoint], rules: WidthRules
) -> None:
    weights = [group for group in groups.values() if points[group.id].kind == "weight"]
    # A user who asked for one width, or pinned all of them, knows; a profile that leaves one is a surprise.
    free = [group for group in weights if not any(_is_single(rules, points[name]) for name in group.points)]
    if free and all(len(group.bit_widths) == 1 for group in weights):
        warnings.warn(
            f"the profile '{rules.profile.name}' leaves a single bit-width to every weight (you allow "
            f"{_text(set(rules.weights))}): there is nothing to search. Choose another placement.profile "
            f"('any' has no limits), or other placement.weight_bit_widths.",
            stacklevel=4,
        )


def _is_single(rules: WidthRules, point: QuantizationPoint) -> bool:
    return len(rules.overrides.get(point.id, Override()).widths or rules.default(point)) == 1


def check_placement(found: Points, points: Mapping[str, QuantizationPoint], profile: Profile) -> None:
    """Warn of weights whose input must be quantized for the profile and is not."""
    floating = [
        name
        for name, point in points.items()
        if point.kind == "weight"
        and not point.input_point
        and any(profile.rules[kind].input for kind in found.kinds[name] & set(WEIGHT_KINDS) - {"embedding"})
    ]
    if floating:
        warnings.warn(
            f"the profile '{profile.name}' needs quantized inputs, but those of {', '.join(floating)} are "
            f"float: these layers run in float there.",
            stacklevel=3,
        )


def _text(widths: set[int]) -> str:
    return ", ".join(map(str, sorted(w for w in widths if 2 <= w <= 8))) or "none"


def _setting(point: QuantizationPoint) -> str:
    return f"placement.{point.kind}_bit_widths"
