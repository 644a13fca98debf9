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
    for name, bits in assignment.per_point(setup).items():
        if (name, bits) not in ranges.ranges:
            raise PlacementError(f"there is no calibrated range for '{name}' at {bits} bits; calibrate anew.")
        size = ranges[name, bits].scale.size
        if size != setup.points[name].num_scales:
            raise PlacementError(
                f"the range of '{name}' at {bits} bits has {size} scales instead of "
                f"{setup.points[name].num_scales}: it was calibrated for another model; calibrate anew."
            )
