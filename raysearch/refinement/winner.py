"""What the search chose, and what of it is in force."""

from __future__ import annotations

from dataclasses import dataclass

from raysearch.records import BitAssignment, QuantizerSetup, RangeTable


@dataclass(frozen=True)
class Winner:
    """The assignment that is refined.

    Attributes:
        setup: points and groups.
        ranges: calibrated ranges with the codes of the rounding table.
        assignment: group id → scheme.
    """

    setup: QuantizerSetup
    ranges: RangeTable
    assignment: BitAssignment
