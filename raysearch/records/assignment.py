"""A scheme for every quantizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

from raysearch.errors import PlacementError
from raysearch.records.scheme import Scheme
from raysearch.records.setup import QuantizerSetup


@dataclass(frozen=True)
class BitAssignment:
    """One scheme for each group of a setup.

    Attributes:
        schemes: group id → scheme, in group order; a bit-width or a text stands for its scheme.

    Example:
        >>> BitAssignment({"fc.weight": "3g32a", "conv.weight": 4}).as_json
        {'fc.weight': '3g32a', 'conv.weight': 4}
    """

    schemes: Mapping[str, Scheme]

    def __init__(self, schemes: Mapping[str, int] | Mapping[str, Scheme] | Mapping[str, int | str]) -> None:
        object.__setattr__(self, "schemes", {name: Scheme.of(value) for name, value in schemes.items()})

    @cached_property
    def bits(self) -> Mapping[str, int]:
        """Group id → bit-width, in group order."""
        return {name: scheme.num_bits for name, scheme in self.schemes.items()}

    @property
    def as_json(self) -> dict[str, int | str]:
        """Group id → bit-width, or the scheme's text where it is more than that."""
        return {name: scheme.as_json for name, scheme in self.schemes.items()}

    @classmethod
    def uniform(cls, setup: QuantizerSetup, scheme: int | str | Scheme) -> BitAssignment:
        """Every weight group at one scheme, every activation group at its widest.

        A group that lacks the scheme takes its nearest one, see `Scheme.nearest`.
        """
        schemes: dict[str, Scheme] = {}
        for group in setup.groups.values():
            if setup.group_kind(group.id) == "activation":
                schemes[group.id] = group.schemes[-1]
            else:
                schemes[group.id] = Scheme.of(scheme).nearest(group.schemes)
        return cls(schemes)

    @classmethod
    def extreme(cls, setup: QuantizerSetup, which: int) -> BitAssignment:
        """Every group at its first (`which=0`) or last (`which=-1`) scheme: its least or greatest width."""
        return cls({group.id: group.schemes[which] for group in setup.groups.values()})

    def check(self, setup: QuantizerSetup) -> None:
        """Refuse an assignment that does not fit a setup.

        Raises:
            PlacementError: a group is missing or unknown, a width is not one of the group's, or a weight and
                its input take widths that the hardware profile does not allow together.
        """
        self.check_named(setup)
        for name in setup.groups:
            if name not in self.schemes:
                raise PlacementError(f"the assignment gives no bit-width for the group '{name}'.")

    def check_named(self, setup: QuantizerSetup) -> None:
        """Refuse what `check` refuses, but for groups that are not named: they are float.

        Raises:
            PlacementError: as `check`.
        """
        for name, scheme in self.schemes.items():
            if name not in setup.groups:
                raise PlacementError(
                    f"the assignment names '{name}', which is no group of this model. "
                    f"`raysearch inspect` lists the groups; there are {len(setup.groups)}."
                )
            allowed = setup.groups[name].schemes
            if scheme not in allowed:
                raise PlacementError(
                    f"the assignment gives '{name}' {scheme.in_words}; allowed: "
                    f"{', '.join(map(str, allowed))}."
                )
        self.check_pairs(setup)

    def check_pairs(self, setup: QuantizerSetup) -> None:
        """Refuse widths of a weight and its input that do not go together; groups may be left out.

        Raises:
            PlacementError: names the weight, its input, both widths and the allowed pairs.
        """
        for name, (weight, active) in setup.broken_pairs(self.bits).items():
            allowed = ", ".join(f"({w}, {a})" for w, a in setup.pairs[name])
            raise PlacementError(
                f"the assignment gives '{name}' {weight} bits and its input "
                f"'{setup.points[name].input_point}' {active} bits, which the hardware profile does not "
                f"allow together; allowed (weight, input): {allowed}."
            )

    def per_point(self, setup: QuantizerSetup) -> dict[str, Scheme]:
        """Quantizer id → scheme, in graph order; a group that is not named stays out (float)."""
        groups = [group for group in setup.groups.values() if group.id in self.schemes]
        scheme = {point: self.schemes[group.id] for group in groups for point in group.points}
        return {name: scheme[name] for name in setup.points if name in scheme}

    def digest(self) -> str:
        """A short hash that does not depend on the order of the groups."""
        return blake2b(json.dumps(sorted(self.as_json.items())).encode(), digest_size=8).hexdigest()
