"""From a quantization point to its quantizer."""

from __future__ import annotations

from raysearch.errors import PlacementError
from raysearch.quantizer.levels import spec_levels
from raysearch.quantizer.quantizer import (
    AsymmetricQuantizer,
    MinimumQuantizer,
    Quantizer,
    SymmetricQuantizer,
)
from raysearch.records import QuantizationPoint

_TYPES: dict[str, type[Quantizer]] = {
    quantizer_type.mode: quantizer_type
    for quantizer_type in (SymmetricQuantizer, AsymmetricQuantizer, MinimumQuantizer)
}


def make_quantizer(point: QuantizationPoint) -> Quantizer:
    """The quantizer that a point asks for; no range yet.

    The axes of a granularity count the dimensions of the point's shape. Of an activation that is one sample,
    so the scale gets one dimension more, the batch.

    Raises:
        PlacementError: an axis does not exist, or an activation is to have scales per group; names the
            quantizer.

    Example:
        >>> from raysearch.records import Granularity
        >>> point = QuantizationPoint("fc.weight", "weight", (), (4, 8), Granularity.per_channel(0))
        >>> make_quantizer(point).scale.shape
        torch.Size([4, 1])
    """
    granularity = point.granularity.normalized(point.shape, point.id)
    shape = point.shape
    if point.kind == "activation":
        if granularity.kind == "per_group":
            raise PlacementError(
                f"the activation '{point.id}' is to have a scale {granularity}, and groups are for weights; "
                f"an activation's scales are per_tensor or per_channel."
            )
        shape, granularity = (1, *shape), granularity.behind_batch()
    return _TYPES[point.grid_spec.mode](
        shape,
        granularity,
        kind=point.kind,
        spec=point.spec,
        name=point.id,
        scale_format=point.scale_format,
    )


def successor(quantizer: Quantizer, point: QuantizationPoint) -> Quantizer:
    """A quantizer for another grid of the same tensor: enabled, frozen and learning as the one before it.

    Its range is still to be set.

    Raises:
        PlacementError: see `make_quantizer`.
    """
    new = make_quantizer(point).to(quantizer.device, quantizer.scale.dtype)
    new.train(quantizer.training)
    new.enabled = quantizer.enabled
    new.freeze(quantizer.frozen)
    for parameter in new.parameters():
        parameter.requires_grad_(quantizer.scale.requires_grad)
    return new


def point_levels(point: QuantizationPoint, num_bits: int, *, signed: bool = True) -> tuple[int, int]:
    """(quant_min, quant_max) that a point's quantizer has at a width.

    Args:
        point: with its spec.
        num_bits: 2–8.
        signed: whether the data of a symmetric quantizer have a sign, where its spec does not say.

    Raises:
        PlacementError: the grid does not exist; names the quantizer.
    """
    spec = point.spec
    if spec is None:
        signed = point.kind == "weight"
    elif spec.signed is not None:
        signed = spec.signed
    return spec_levels(spec, num_bits, signed=signed, name=point.id)
