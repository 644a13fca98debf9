"""A controller built by hand, as NNCF's: quantizers with their places, and the records they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from raysearch.errors import PlacementError
from raysearch.quantizer import Quantizer
from raysearch.records import (
    Granularity,
    QuantizationPoint,
    QuantizerGroup,
    QuantizerRange,
    QuantizerSetup,
    QuantizerSpec,
    RangeTable,
    Scheme,
    Site,
)


@dataclass(frozen=True)
class WeightQuantizer:
    """A weight's quantizer, the module that owns the weight, and where it acts."""

    quantizer: Quantizer
    module: nn.Module
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class NonWeightQuantizer:
    """An activation's quantizer and where it acts."""

    quantizer: Quantizer
    sites: tuple[Site, ...]


def setup_of(
    weights: Mapping[str, WeightQuantizer],
    others: Mapping[str, NonWeightQuantizer],
    weight_inputs: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
) -> QuantizerSetup:
    """The setup of a controller that is built by hand: one group a quantizer, at its present width.

    MACs are not known; statistics leave out what is made of them.

    Args:
        weights: weight id → quantizer, owner, sites.
        others: activation id → quantizer, sites.
        weight_inputs: weight id → id of the activation that feeds its operation.
        shapes: id → shape of the weight, or of one sample of the activation.

    Raises:
        PlacementError: a quantizer has no shape.
    """
    points: dict[str, QuantizationPoint] = {}
    groups: dict[str, QuantizerGroup] = {}
    parts: dict[str, WeightQuantizer | NonWeightQuantizer] = {**weights, **others}
    for name, part in parts.items():
        if name not in shapes:
            raise PlacementError(f"quantizers_input_shapes has no shape for '{name}'; give one for each.")
        points[name] = QuantizationPoint(
            id=name,
            kind="weight" if name in weights else "activation",
            sites=part.sites,
            shape=tuple(shapes[name]),
            granularity=_point_granularity(part.quantizer),
            input_point=weight_inputs.get(name, ""),
            spec=_spec_of(part.quantizer),
            scale_format=part.quantizer.scale_format,
        )
        groups[name] = QuantizerGroup(name, (name,), (part.quantizer.num_bits,))
    return QuantizerSetup(points, groups)


def _spec_of(quantizer: Quantizer) -> QuantizerSpec | None:
    """The kind of grid; None where it is the default of its kind."""
    default = "symmetric" if quantizer.kind == "weight" else "asymmetric"
    if quantizer.spec is None and quantizer.mode != default:
        return QuantizerSpec(quantizer.mode)
    return quantizer.spec


def _point_granularity(quantizer: Quantizer) -> Granularity:
    """That of the weight, or of one sample: an activation's quantizer counts the batch dimension too."""
    axis = quantizer.granularity.axis
    if quantizer.kind == "weight" or axis is None:
        return quantizer.granularity
    return Granularity(axis - 1)


def ranges_of(quantizers: Mapping[str, Quantizer]) -> RangeTable:
    """The ranges that quantizers have now, at their present widths."""
    ranges: dict[tuple[str, Scheme], QuantizerRange] = {}
    for name, quantizer in quantizers.items():
        scale = quantizer.effective_scale().detach().float().cpu().reshape(-1).numpy().copy()
        zero_point = quantizer.zero_points().cpu().reshape(-1).numpy().astype("int32")
        minima = None
        if quantizer.minimum is not None:
            minima = quantizer.minimum.float().cpu().reshape(-1).numpy().copy()
        value = QuantizerRange(scale, zero_point, bool(quantizer.signed), minimum=minima)
        ranges[name, Scheme(quantizer.num_bits)] = value
    return RangeTable(ranges)
