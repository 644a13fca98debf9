"""A captured model with some of its quantizers and integer weights back in float."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from raysearch.controller import StrippedWeight
from raysearch.export.onnx_qdq.capture import codes_identity
from raysearch.export.onnx_qdq.groups import spread_over_codes
from raysearch.export.onnx_qdq.storage import code_readers
from raysearch.export.onnx_qdq.values import add_initializer, constant, only_reader

if TYPE_CHECKING:
    import onnx_ir as ir


def float_again(model: ir.Model, weights: Iterable[StrippedWeight], quantizers: Iterable[str]) -> None:
    """Store weights as the float values of their codes, and take quantizers out.

    Equal weights, which the exporter merges, become float together.

    Args:
        model: an `onnx_ir` model of `capture`; changed in place.
        weights: the weights to store in float.
        quantizers: ids of activation quantizers.
    """
    names = {codes_identity(weight.codes.cpu().numpy()): weight.name for weight in weights}
    for value, nodes in code_readers(model).items():
        name = names.get(codes_identity(value.const_value.numpy()))
        for node in nodes if name is not None else ():
            _store_float(model.graph, node, str(name))
    removed = set(quantizers)
    for node in list(model.graph):
        if node.op_type == "QuantizeLinear" and (node.name or "").split("#")[0] in removed:
            _bypass(node)


def _store_float(graph: ir.Graph, node: Any, name: str) -> None:
    codes, scale, zero = (constant(value) for value in node.inputs[:3])
    if codes is None or scale is None or zero is None:
        return
    scale, zero = (spread_over_codes(node, values, codes.shape) for values in (scale, zero))
    values = (codes.astype(np.float32) - zero.astype(np.float32)) * scale
    node.outputs[0].replace_all_uses_with(add_initializer(graph, name, values.astype(np.float32)))


def _bypass(quantize: Any) -> None:
    """Let the readers of a quantizer's values read what it was given; clips of its codes go with it."""
    codes = quantize.outputs[0]
    while (clip := only_reader(codes)) is not None and clip.op_type in ("Min", "Max"):
        codes = clip.outputs[0]
    for use in list(codes.uses()):
        if use.node.op_type == "DequantizeLinear":
            use.node.outputs[0].replace_all_uses_with(quantize.inputs[0])
