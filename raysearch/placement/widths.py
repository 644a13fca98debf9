"""Schemes: what the user and the profile leave each group, and which widths go together."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from raysearch.config.placement import OverrideConfig, PlacementConfig
from raysearch.errors import PlacementError
from raysearch.placement.overrides import apply_spec, default_mode
from raysearch.placement.points import PointTable
from raysearch.placement.profile import EVERY, WEIGHT_KINDS, Pairs, Profile
from raysearch.placement.schemes import check_group_sizes, describe, distinct_schemes, with_fitting_types
from raysearch.records import PER_TENSOR, QuantizationPoint, QuantizerGroup, Scheme
from raysearch.records.components import connected_components

_UNSET = OverrideConfig()


@dataclass(frozen=True)
class WidthRules:
    """What decides about widths and kinds of quantizers.

    Attributes:
        settings: schemes that a weight or an activation may take where nothing else is set.
        overrides: quantizer id → what is set for it.
        profile: of the hardware.
    """

    settings: PlacementConfig
    overrides: Mapping[str, OverrideConfig]
    profile: Profile

    def default(self, point: QuantizationPoint) -> tuple[Scheme, ...]:
        """Schemes of a point for which nothing is set."""
        if point.kind == "weight":
            return self.settings.schemes
        return tuple(map(Scheme, self.settings.activation_bit_widths))

    def schemes(self, point: QuantizationPoint) -> tuple[Scheme, ...]:
        """What is set for a point, else the default."""
        schemes = self.override(point.id).schemes
        return self.default(point) if schemes is None else schemes

    def override(self, name: str) -> OverrideConfig:
        """What is set for a point; all None where nothing is."""
        return self.overrides.get(name, _UNSET)


def with_specs(table: PointTable, rules: WidthRules) -> dict[str, QuantizationPoint]:
    """The points with mode, sign and granularity as overrides and profile want them.

    Raises:
        PlacementError: an override contradicts the profile.
    """
    result: dict[str, QuantizationPoint] = {}
    for name, point in table.points.items():
        override, kinds = rules.override(name), table.kinds[name]
        mode = override.mode or _mode(point, rules.profile.modes(kinds, f"{point.kind}_modes"))
        _check_profile(name, f"{point.kind}_modes", mode, rules.profile, kinds)
        granularity = PER_TENSOR if override.granularity == "per_tensor" else point.granularity
        if point.kind == "weight":
            allowed = rules.profile.modes(kinds, "weight_granularity")
            has_rows = "per_channel" in allowed or "per_group" in allowed
            if not override.granularity and not has_rows:
                granularity = PER_TENSOR
            # Whether a scale a channel may be left, where groups are wanted, its schemes tell.
            if granularity is PER_TENSOR or override.granularity or not has_rows:
                _check_profile(name, "weight_granularity", granularity.kind, rules.profile, kinds)
        result[name] = apply_spec(point, mode, override.signed, granularity)
    return result


def _mode(point: QuantizationPoint, allowed: tuple[str, ...]) -> str:
    """The default of the point's kind where the profile allows it, else what the profile prefers."""
    if default_mode(point) in allowed:
        return default_mode(point)
    # Minima come with schemes that have them, and are no mode of the point itself.
    own = [mode for mode in allowed if mode != "minimum"]
    return own[0] if own else ""


def _check_profile(name: str, field: str, value: str, profile: Profile, kinds: set[str]) -> None:
    allowed = profile.modes(kinds, field)
    if value not in allowed:
        what = "granularity" if field == "weight_granularity" else "mode"
        raise PlacementError(
            f"the {what} of '{name}' is {value or 'unset'}, but the profile '{profile.name}' allows "
            f"{', '.join(allowed) or 'none'} for {', '.join(sorted(kinds))}. Change the override, or "
            f"placement.profile."
        )


def make_groups(
    table: PointTable, points: Mapping[str, QuantizationPoint], rules: WidthRules
) -> tuple[dict[str, QuantizerGroup], dict[str, tuple[tuple[int, int], ...]]]:
    """Groups with their schemes, and weight id → pairs, where not every combination is allowed.

    Args:
        table: the points as they were found, with what reads them.
        points: those that are quantized, with their kind of quantizer.
        rules: of the widths.

    Raises:
        PlacementError: members of a group, or user and profile, leave no scheme, or a scheme fits no weight.
    """
    weights = {name: point for name, point in points.items() if point.kind == "weight"}
    schemes_of = {name: with_fitting_types(rules.schemes(p), [p]) for name, p in weights.items()}
    check_group_sizes(schemes_of, weights)
    _check_schemes(schemes_of, table, weights, rules.profile)
    fused = [(fusion.weights[0], other) for fusion in table.fusions for other in fusion.weights[1:]]
    partners = [(a, b) for a, b in (*table.partners, *fused) if a in points and b in points]
    name = rules.profile.name
    reasons = {f.weights[0]: f"{f.reason}; {name} fuses them" for f in table.fusions}
    groups: dict[str, QuantizerGroup] = {}
    for members in connected_components(points, partners):
        schemes = _group_schemes(members, table, points, rules)
        reason = reasons.get(members[0], "")
        groups[members[0]] = QuantizerGroup(members[0], members, schemes, reason)
    group_of = {name: group.id for group in groups.values() for name in group.points}
    links = {
        name: _Link(group_of[name], group_of[point.input_point], rules.profile.pairs(table.kinds[name]))
        for name, point in points.items()
        if point.kind == "weight" and point.input_point
    }
    groups = _consistent(groups, links, rules.profile)
    _warn_single(groups, points, rules)
    pairs: dict[str, tuple[tuple[int, int], ...]] = {}
    for name, link in links.items():
        widths, active = groups[link.weight].bit_widths, groups[link.activation].bit_widths
        combinations = [(w, a) for w in widths for a in active]
        allowed = sorted(pair for pair in combinations if pair in link.pairs)
        if len(allowed) < len(combinations):
            pairs[name] = tuple(allowed)
    return groups, pairs


@dataclass(frozen=True)
class _Link:
    """The groups of a weight and of its input, and the (weight, input) widths that go together."""

    weight: str
    activation: str
    pairs: Pairs


def _check_schemes(
    schemes_of: Mapping[str, Iterable[Scheme]],
    table: PointTable,
    weights: Mapping[str, QuantizationPoint],
    profile: Profile,
) -> None:
    """Refuse a scheme that the profile takes of no weight; a width alone may be wanted of other kinds."""
    names_of: dict[Scheme, list[str]] = {}
    for name, schemes in schemes_of.items():
        for scheme in schemes:
            names_of.setdefault(scheme, []).append(name)
    for scheme, names in names_of.items():
        if any(_is_taken(scheme, [name], table, weights, profile) for name in names):
            continue
        kinds = sorted(set().union(*(table.kinds[name] for name in names)))
        raise PlacementError(
            f"the profile '{profile.name}' takes no weight at the scheme '{scheme}': for {', '.join(kinds)} "
            f"it allows {profile.describe(kinds)}. Change placement.weight_schemes or the override, or "
            f"placement.profile."
        )


def _group_schemes(
    members: tuple[str, ...],
    table: PointTable,
    points: Mapping[str, QuantizationPoint],
    rules: WidthRules,
) -> tuple[Scheme, ...]:
    requested: dict[str, tuple[Scheme, ...]] = {}
    for name in members:
        schemes = rules.override(name).schemes
        if schemes is not None:
            requested[name] = schemes
    left = set(next(iter(requested.values()), rules.default(points[members[0]])))
    left = left.intersection(*requested.values())
    set_schemes = left
    left = set(with_fitting_types(left, [points[name] for name in members]))
    if set_schemes and not left:
        raise PlacementError(
            f"'{members[0]}' has {points[members[0]].shape} weights, whose rows hold no blocks of the types "
            f"{_text(set_schemes)}. Give it another scheme by an override, or leave it float "
            f"(placement.ignored_scopes)."
        )
    if not left:
        listing = ", ".join(f"{name} to {' or '.join(map(str, w))}" for name, w in requested.items())
        raise PlacementError(f"the placement rules set {listing}, but these must share one bit-width.")
    taken = [scheme for scheme in left if _is_taken(scheme, members, table, points, rules.profile)]
    allowed = set(EVERY)
    for name in members:
        if points[name].kind == "weight":
            allowed &= set(rules.profile.weights(table.kinds[name]))
        else:
            allowed &= set(rules.profile.activations(table.kinds[name]))
    schemes = distinct_schemes(
        [scheme for scheme in taken if scheme.num_bits in allowed], [points[name] for name in members]
    )
    if not taken:
        scheme = min(left)
        refused = next(n for n in members if not _is_taken(scheme, [n], table, points, rules.profile))
        raise PlacementError(
            f"the profile '{rules.profile.name}' takes '{refused}' at none of the schemes {_text(left)}: "
            f"it is {describe(points[refused], scheme)} at {scheme}, and the profile allows "
            f"{rules.profile.describe(table.kinds[refused])}. Add a scheme that fits it "
            f"(placement.weight_schemes or an override), or leave it float (placement.ignored_scopes)."
        )
    if not schemes:
        kinds = sorted(set().union(*(table.kinds[name] for name in members)))
        raise PlacementError(
            f"no bit-width is left for '{members[0]}' ({', '.join(kinds)}): you allow {_text(left)}, the "
            f"profile '{rules.profile.name}' allows {_text(allowed)}. Change placement.profile, or "
            f"{_setting(points[members[0]])} or an override."
        )
    return schemes


def _is_taken(
    scheme: Scheme,
    members: Iterable[str],
    table: PointTable,
    points: Mapping[str, QuantizationPoint],
    profile: Profile,
) -> bool:
    """Whether the profile takes all members as a scheme stores them; a plain one's width is seen later."""
    for name in members:
        kinds = table.kinds[name]
        if points[name].kind == "weight" and not profile.takes(kinds, points[name], scheme):
            return False
        if not scheme.is_plain and scheme.num_bits not in profile.weights(kinds):
            return False
    return True


def _consistent(
    groups: Mapping[str, QuantizerGroup], links: Mapping[str, _Link], profile: Profile
) -> dict[str, QuantizerGroup]:
    """Take away widths that have no partner on the other side, until none is left to take."""
    widths = {name: set(group.bit_widths) for name, group in groups.items()}
    changed = True
    while changed:
        changed = False
        for name, link in links.items():
            weight, activation = widths[link.weight], widths[link.activation]
            pairs = {(w, a) for w, a in link.pairs if w in weight and a in activation}
            if not pairs:
                raise PlacementError(
                    f"no pair of bit-widths is left for '{name}' and its input '{link.activation}': you "
                    f"leave {_text(weight)} for the weight and {_text(activation)} for the input, "
                    f"the profile '{profile.name}' allows (weight, input) "
                    f"{', '.join(map(str, sorted(link.pairs)))}. Change the widths, or placement.profile."
                )
            for group, index in ((link.weight, 0), (link.activation, 1)):
                partnered = {pair[index] for pair in pairs}
                changed = changed or partnered != widths[group]
                widths[group] = partnered
    left: dict[str, QuantizerGroup] = {}
    for member in groups.values():
        schemes = [scheme for scheme in member.schemes if scheme.num_bits in widths[member.id]]
        left[member.id] = replace(member, schemes=tuple(schemes))
    return left


def _warn_single(
    groups: Mapping[str, QuantizerGroup], points: Mapping[str, QuantizationPoint], rules: WidthRules
) -> None:
    weights = [group for group in groups.values() if points[group.id].kind == "weight"]
    # A user who asked for one width, or pinned all of them, knows; a profile that leaves one is a surprise.
    free = [group for group in weights if not any(_is_single(rules, points[name]) for name in group.points)]
    if free and all(len(group.schemes) == 1 for group in weights):
        warnings.warn(
            f"the profile '{rules.profile.name}' leaves a single bit-width to every weight (you allow "
            f"{_text(rules.settings.schemes)}): there is nothing to search. Choose another "
            f"placement.profile ('any' has no limits), or other placement.weight_bit_widths.",
            stacklevel=4,
        )


def _is_single(rules: WidthRules, point: QuantizationPoint) -> bool:
    return len(set(rules.schemes(point))) == 1


def check_placement(table: PointTable, points: Mapping[str, QuantizationPoint], profile: Profile) -> None:
    """Warn of weights whose input must be quantized for the profile and is not.

    Args:
        table: what reads every point.
        points: those that are quantized.
        profile: of the hardware.
    """
    layers = set(WEIGHT_KINDS) - {"embedding"}
    floating: list[str] = []
    for name, point in points.items():
        if point.kind == "weight" and not point.input_point:
            rules = [profile.rules[kind] for kind in table.kinds[name] & layers]
            if any(rule.input for rule in rules):
                floating.append(name)
    if floating:
        warnings.warn(
            f"the profile '{profile.name}' needs quantized inputs, but those of {', '.join(floating)} are "
            f"float: these layers run in float there.",
            stacklevel=3,
        )


def _text(values: Iterable[int] | Iterable[Scheme]) -> str:
    return ", ".join(map(str, sorted(values))) or "none"


def _setting(point: QuantizationPoint) -> str:
    return f"placement.{point.kind}_bit_widths"
