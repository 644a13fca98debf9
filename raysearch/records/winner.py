"""What the search chose, and what of it is in force."""

from __future__ import annotations

from dataclasses import dataclass

from raysearch.records.assignment import BitAssignment
from raysearch.records.ranges import RangeTable
from raysearch.records.setup import QuantizerSetup


@dataclass(frozen=True)
class Winner:
    """An assignment and all that says how it is deployed.

    Attributes:
        setup: points and groups.
        ranges: scales and codes in force.
        assignment: group id → scheme.
    """

    setup: QuantizerSetup
    ranges: RangeTable
    assignment: BitAssignment
