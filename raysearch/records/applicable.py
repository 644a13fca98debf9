"""What is refused before a controller changes a model."""

from __future__ import annotations

from raysearch.errors import PlacementError
from raysearch.records import BitAssignment, QuantizerSetup, RangeTable


def check_assignment(setup: QuantizerSetup, ranges: RangeTable, assignment: BitAssignment) -> None:
    """Refuse an assignment that cannot be applied; groups may be left out.

    Raises:
        PlacementError: a group is unknown, a width is not one of its group's, or a range is missing.
    """
    for group, bits in assignment.bits.items():
        known = setup.groups.get(group)
        if known is None or bits not in known.bit_widths:
            allowed = (
                f"the model has no such group, `raysearch inspect` lists all {len(setup.groups)}"
                if known is None
                else f"allowed: {', '.join(map(str, known.bit_widths))}"
            )
            raise PlacementError(f"the assignment gives '{group}' {bits} bits; {allowed}.")
    for name, (wide, active) in setup.broken_pairs(assignment.bits).items():
        allowed = ", ".join(map(str, setup.pairs[name]))
        raise PlacementError(
            f"the assignment gives '{name}' {wide} bits and its input {active}; the hardware profile allows "
            f"the pairs (weight, input): {allowed}."
        )
    for name, bits in assignment.per_point(setup).items():
        if (name, bits) not in ranges.ranges:
            raise PlacementError(f"there is no calibrated range for '{name}' at {bits} bits; calibrate anew.")
        size = ranges[name, bits].scale.size
        if size != setup.points[name].num_scales:
            raise PlacementError(
                f"the range of '{name}' at {bits} bits has {size} scales instead of "
                f"{setup.points[name].num_scales}: it was calibrated for another model; calibrate anew."
            )
