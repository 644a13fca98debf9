"""Biases that do not fit the 32 bits in which integer convolutions hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raysearch.export.onnx_qdq.values import add_initializer, constant, is_grouped, read_codes, weight_reader

if TYPE_CHECKING:
    import onnx_ir as ir

BIAS_LIMIT = 2.0**24
"""Greatest bias in steps of input scale times weight scale.

Codes spread over 7 bits (`store_codes`) make the steps up to 2^6 finer: 2^30, and as much is left to the sum.
"""

STEP_LIMIT = 2.0**-100
"""Least step; float32 holds it, and what kernels compute from it, with all digits."""


def bound_bias(graph: ir.Graph, layer: Any) -> None:
    """Coarsen the scales of channels whose bias would overflow, and round their codes to the coarser grid.

    Integer kernels hold a bias b as an int32 in steps of s_x·s, input scale times weight scale, and wrap
    around where it does not fit: in channels whose weights are next to nothing beside their bias. Those get
    the scale s' = |b|/(s_x·2^24), or 2⁻¹⁰⁰/s_x if that is more, and the codes rne((q − z)·s/s') + z. That
    moves a result by less than 8·10⁻⁶ of the bias for each input of the channel.
    """
    reader = weight_reader(layer)
    # There is no integer kernel of groups, so a bias stays a float.
    if reader is None or is_grouped(reader):
        return
    codes, scale = constant(reader.inputs[0]), constant(reader.inputs[1])
    if codes is None or scale is None:
        return
    channels = np.broadcast_to(scale.astype(np.float64), codes.shape[:1])
    step, bias = _input_scale(layer), _bias(layer)
    # Of a float input the kernel is a float one, and only a scale of 0 must go.
    least = np.maximum(np.abs(bias) / BIAS_LIMIT, STEP_LIMIT) / step if step else np.full((), STEP_LIMIT)
    small = np.abs(channels) < least
    if not small.any():
        return
    coarse = np.where(small, np.copysign(least, channels), channels).astype(np.float32)
    zero = constant(reader.inputs[2])
    along = (-1, *[1] * (codes.ndim - 1))
    zeros = np.broadcast_to(0 if zero is None else zero, channels.shape).astype(np.float64).reshape(along)
    ratio = np.where(small, channels / coarse, 1.0).reshape(along)
    rounded = (np.rint((codes - zeros) * ratio) + zeros).astype(np.int8)
    _replace_codes(graph, layer, reader, rounded, coarse)


def _input_scale(layer: Any) -> float | None:
    """The step of the codes that a layer reads; None where it reads floats."""
    maker = layer.inputs[0].producer()
    if maker is None or maker.op_type != "DequantizeLinear":
        return None
    scale = constant(maker.inputs[1])
    return None if scale is None else float(scale.max())


def _bias(layer: Any) -> npt.NDArray[Any]:
    bias = constant(layer.inputs[2]) if len(layer.inputs) > 2 else None
    return np.zeros(()) if bias is None else bias.astype(np.float64)


def _replace_codes(
    graph: ir.Graph, layer: Any, reader: Any, codes: npt.NDArray[np.int8], scale: npt.NDArray[np.float32]
) -> None:
    old = reader.inputs[0]
    fresh = add_initializer(graph, old.name, codes)
    read_codes(graph, layer, reader, fresh, scale)
    if not old.uses():
        # The file names codes after their weights.
        del graph.initializers[old.name]
        fresh.name = old.name
