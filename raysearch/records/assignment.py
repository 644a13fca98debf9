"""A bit-width for every quantizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

from raysearch.errors import PlacementError
from raysearch.records.setup import QuantizerSetup


@dataclass(frozen=True)
class BitAssignment:
    """One bit-width for each group of a setup.

    Attributes:
        bits: group id → bit-width, in group order.
    """

    bits: Mapping[str, int]

    @classmethod
    def uniform(cls, setup: QuantizerSetup, num_bits: int) -> BitAssignment:
        """Every weight group at `num_bits`, every activation group at its widest.

        A group that lacks `num_bits` takes its nearest allowed width, the lower one on a tie.
        """
        bits: dict[str, int] = {}
        for group in setup.groups.values():
            if setup.group_kind(group.id) == "activation":
                bits[group.id] = group.bit_widths[-1]
            else:
                bits[group.id] = min(group.bit_widths, key=lambda b: (abs(b - num_bits), b))
        return cls(bits)

    @classmethod
    def extreme(cls, setup: QuantizerSetup, which: int) -> BitAssignment:
        """Every group at its lowest (`which=0`) or highest (`which=-1`) width."""
        return cls({group.id: group.bit_widths[which] for group in setup.groups.values()})

    def check(self, setup: QuantizerSetup) -> None:
        """Refuse an assignment that does not fit a setup.

        Raises:
            PlacementError: a group is missing or unknown, a width is not one of the group's, or a weight and
                its input take widths that the hardware profile does not allow together.
        """
        self.check_named(setup)
        for name in setup.groups:
            if name not in self.bits:
                raise PlacementError(f"the assignment gives no bit-width for the group '{name}'.")

    def check_named(self, setup: QuantizerSetup) -> None:
        """Refuse what `check` refuses, but for groups that are not named: they are float.

        Raises:
            PlacementError: as `check`.
        """
        for name, bits in self.bits.items():
            if name not in setup.groups:
                raise PlacementError(
                    f"the assignment names '{name}', which is no group of this model. "
                    f"`raysearch inspect` lists the groups; there are {len(setup.groups)}."
                )
            allowed = setup.groups[name].bit_widths
            if bits not in allowed:
                raise PlacementError(
                    f"the assignment gives '{name}' {bits} bits; allowed: {', '.join(map(str, allowed))}."
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

    def per_point(self, setup: QuantizerSetup) -> dict[str, int]:
        """Quantizer id → bit-width, in graph order; a group that is not named stays out (float)."""
        width = {p: self.bits[g.id] for g in setup.groups.values() if g.id in self.bits for p in g.points}
        return {name: width[name] for name in setup.points if name in width}

    def digest(self) -> str:
        """A short hash that does not depend on the order of the groups."""
        return blake2b(json.dumps(sorted(self.bits.items())).encode(), digest_size=8).hexdigest()
