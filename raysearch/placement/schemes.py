"""Schemes at the weights of a model: which of them are the same thing, and what became of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from raysearch.config.placement import PlacementConfig
from raysearch.errors import PlacementError
from raysearch.records import QuantizationPoint, QuantizerSetup, Scheme
from raysearch.records.block_types import BLOCK_TYPES

SMALL_BLOCK = 32
"""Inputs of a block of the types that fit most rows."""


def with_fitting_types(schemes: Iterable[Scheme], points: Sequence[QuantizationPoint]) -> tuple[Scheme, ...]:
    """The schemes with a type of blocks that all rows hold in the place of one that they do not.

    It is the type of the fewest bits, no fewer than the scheme's, of those with blocks of 32: llama.cpp's own
    rule. A scheme for which there is none is left out.
    """
    fitting: list[Scheme] = []
    for scheme in schemes:
        choices = [scheme, *_small_blocks(scheme)] if scheme.block_type else [scheme]
        fitting += [choice for choice in choices if all(point.holds(choice) for point in points)][:1]
    return tuple(dict.fromkeys(fitting))


def _small_blocks(scheme: Scheme) -> list[Scheme]:
    """Types of blocks of 32 with at least as many bits, ascending."""
    types = [block_type for block_type in BLOCK_TYPES.values() if block_type.block_size == SMALL_BLOCK]
    return [Scheme.of(block_type.name) for block_type in types if block_type.num_bits >= scheme.num_bits]


def distinct_schemes(schemes: Iterable[Scheme], points: Sequence[QuantizationPoint]) -> tuple[Scheme, ...]:
    """The schemes that store the points in different ways, ascending.

    Of several that store all points alike the plainest stays: `4` for a `4g64` that is per channel at each
    of them, `4a` for a `4g64a`.
    """
    distinct: dict[object, Scheme] = {}
    for scheme in sorted(schemes):
        plainest = _plainest(scheme, points)
        distinct.setdefault(_option(plainest, points), plainest)
    return tuple(sorted(distinct.values()))


def _plainest(scheme: Scheme, points: Sequence[QuantizationPoint]) -> Scheme:
    per_channel = Scheme(scheme.num_bits, is_asymmetric=scheme.is_asymmetric)
    if scheme.block_type:
        return scheme
    for plainer in (Scheme(scheme.num_bits), per_channel):
        if _stored(plainer, points) == _stored(scheme, points):
            return plainer
    return scheme


def _option(scheme: Scheme, points: Sequence[QuantizationPoint]) -> tuple[int, tuple[object, ...]]:
    """What a scheme comes to: options that are equal here are one."""
    return scheme.num_bits, _stored(scheme, points)


def _stored(scheme: Scheme, points: Sequence[QuantizationPoint]) -> tuple[object, ...]:
    """What tells how the points are stored; the default spec and the same one written out are alike."""
    effective = [point.at(scheme) for point in points]
    return tuple((point.granularity, point.grid_spec, point.scale_format) for point in effective)


def check_group_sizes(
    schemes_of: Mapping[str, Iterable[Scheme]], points: Mapping[str, QuantizationPoint]
) -> None:
    """Refuse a group size by which no weight that may take it can be divided.

    Args:
        schemes_of: weight id → the schemes that the settings give it.
        points: id → point.

    Raises:
        PlacementError: names the scheme and the weight that comes closest.
    """
    weights_of: dict[Scheme, list[QuantizationPoint]] = {}
    for name, schemes in schemes_of.items():
        for scheme in schemes:
            if scheme.group_size and not scheme.block_type:
                weights_of.setdefault(scheme, []).append(points[name])
    for scheme, weights in sorted(weights_of.items()):
        if not any(point.at(scheme).granularity.kind == "per_group" for point in weights):
            widest = max(weights, key=_num_inputs)
            raise PlacementError(
                f"the group size of the scheme '{scheme}' fits none of {len(weights)} weights that may take "
                f"it; '{widest.id}' is {describe(widest, scheme)}. Choose a smaller size, or the bit-width "
                f"{scheme.num_bits} alone."
            )


def describe(point: QuantizationPoint, scheme: Scheme) -> str:
    """What became of a scheme at a weight: its groups, or why it has none.

    Example:
        >>> from raysearch.records import Granularity
        >>> weight = QuantizationPoint("fc", "weight", (), (10, 67), Granularity(0))
        >>> describe(weight, Scheme.of("4g64"))
        'per channel: 67 inputs have no divisor between 32 and 64'
    """
    if scheme.block_type:
        return _describe_type(point, scheme)
    granularity, row = point.at(scheme).granularity, point.row
    if row is not None and granularity.group_size is not None:
        size = granularity.group_size * row.num_positions
        return f"groups of {size} of {_num_inputs(point)} inputs"
    kind = granularity.kind.replace("_", " ")
    if not scheme.group_size:
        return kind
    if row is None:
        return f"{kind}: it has no row of inputs to divide"
    channels, positions = row.num_channels, row.num_positions
    if channels * positions <= scheme.group_size:
        return f"{kind}: a row has {channels * positions} inputs, no more than a group"
    least, most = -(-scheme.group_size // 2), scheme.group_size
    if positions == 1:
        return f"{kind}: {channels} inputs have no divisor between {least} and {most}"
    return (
        f"{kind}: no divisor of {channels} channels of {positions} inputs each gives {least} to {most} inputs"
    )


def _describe_type(point: QuantizationPoint, scheme: Scheme) -> str:
    block_type = BLOCK_TYPES[scheme.block_type]
    if point.holds(scheme):
        return f"blocks of {block_type.block_size} inputs, {block_type.bits_per_weight:g} bits a weight"
    why = f"{_num_inputs(point)} inputs hold no blocks of {block_type.block_size}"
    others = with_fitting_types([scheme], [point])
    return f"{others[0]}: {why}" if others else f"not at all: {why}"


def _num_inputs(point: QuantizationPoint) -> int:
    return point.row.num_inputs if point.row is not None else 0


def stored_as(setup: QuantizerSetup, settings: PlacementConfig) -> dict[str, dict[str, str]]:
    """Weight → scheme → what became of it, of the schemes that are more than a bit-width.

    They are those of the settings that led to one of the weight's options, and the options themselves. Empty
    where no weight has any.

    Args:
        setup: where the weights are, and their schemes.
        settings: what it was placed with.
    """
    stored: dict[str, dict[str, str]] = {}
    for name, point in setup.of_kind("weight").items():
        options = setup.group_of(name).schemes
        points = [setup.points[member] for member in setup.group_of(name).points]
        taken = {_option(scheme, points) for scheme in options}
        fitting = {scheme: with_fitting_types([scheme], points) for scheme in settings.schemes}
        led_to = [s for s, of in fitting.items() if any(_option(each, points) in taken for each in of)]
        schemes = sorted({*options, *led_to})
        texts = {str(scheme): describe(point, scheme) for scheme in schemes if not scheme.is_plain}
        if texts:
            stored[name] = texts
    return stored
