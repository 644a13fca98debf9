"""What is refused before a controller changes a model."""

from __future__ import annotations

from raysearch.errors import PlacementError
from raysearch.records import BitAssignment, QuantizerSetup, RangeTable


def check_assignment(setup: QuantizerSetup, ranges: RangeTable, assignment: BitAssignment) -> None:
    """Refuse an assignment that cannot be applied; groups may be left out.

    Args:
        setup: groups and the widths they admit.
        ranges: calibrated ranges, one needed for each quantizer at its width.
        assignment: what is to be applied.

    Raises:
        PlacementError: a group is unknown, a width is not one of its group's, or a range is missing.
    """
    assignment.check_named(setup)
    for name, scheme in assignment.per_point(setup).items():
        if (name, scheme) not in ranges.ranges:
            raise PlacementError(
                f"there is no calibrated range for '{name}' at {scheme.in_words}; calibrate anew."
            )
        size = ranges[name, scheme].scale.size
        num_scales = setup.points[name].at(scheme).num_scales
        if size != num_scales:
            raise PlacementError(
                f"the range of '{name}' at {scheme.in_words} has {size} scales instead of {num_scales}: it "
                f"was calibrated for another model; calibrate anew."
            )
