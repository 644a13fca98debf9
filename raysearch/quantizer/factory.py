"""From a quantization point to its quantizer."""

from __future__ import annotations

from typing import Literal

from raysearch.errors import PlacementError
from raysearch.quantizer.learned_range import AsymmetricRangeQuantizer, SymmetricRangeQuantizer
from raysearch.quantizer.learned_step import AsymmetricQuantizer, SymmetricQuantizer
from raysearch.quantizer.levels import spec_levels
from raysearch.quantizer.quantizer import Quantizer
from raysearch.records import QuantizationPoint

Learning = Literal["step", "range"]


def make_quantizer(
    point: QuantizationPoint,
    *,
    learning: Learning = "step",
    snap: bool = False,
) -> Quantizer:
    """The quantizer that a point asks for; no range yet.

    A channel axis counts the dimensions of the point's shape. Of an activation that is one sample, so the
    scale gets one dimension more, the batch.

    Args:
        point: its kind, shape, axis and spec; a spec of None is the default of its kind.
        learning: "step" learns the step by LSQ and keeps the zero point; "range" learns the ends of the range
            with the parameters and gradients of the NNCF reference.
        snap: see `tune_range`; only of an asymmetric quantizer that learns its range.

    Raises:
        PlacementError: the axis does not exist, or the kind of learning is unknown; names the quantizer.

    Example:
        >>> make_quantizer(QuantizationPoint("fc.weight", "weight", (), (4, 8), axis=0)).scale.shape
        torch.Size([4, 1])
    """
    dims = len(point.shape)
    if point.axis is not None and not -dims <= point.axis < dims:
        raise PlacementError(
            f"'{point.id}' of shape {point.shape} has no axis {point.axis} for its scales; use one of "
            f"0 … {dims - 1}, or None for one scale per tensor."
        )
    axis = None if point.axis is None else point.axis % dims
    shape = point.shape
    if point.kind == "activation":
        shape, dims = (1, *shape), dims + 1
        axis = None if axis is None else axis + 1
    symmetric = point.kind == "weight" if point.spec is None else point.spec.mode == "symmetric"
    if learning == "step":
        made = SymmetricQuantizer if symmetric else AsymmetricQuantizer
        return made(shape, axis, dims, kind=point.kind, spec=point.spec, name=point.id)
    if learning != "range":
        raise PlacementError(f"'{point.id}' is to learn its '{learning}'; known: 'step', 'range'.")
    if symmetric:
        return SymmetricRangeQuantizer(shape, axis, dims, kind=point.kind, spec=point.spec, name=point.id)
    return AsymmetricRangeQuantizer(
        shape, axis, dims, kind=point.kind, spec=point.spec, name=point.id, snap=snap
    )


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
