"""A captured program that takes the levels of another stripping of the same model, in place of a new capture.

Tensors are inputs of a program (`program.py`), so all that it holds of a stripping are the lowest and highest
levels of its activations: the bounds of one `clamp` each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from raysearch.controller.stripped import Dequantize
from raysearch.export.program import Captured
from raysearch.quantizer import Quantizer

_CLAMPS = (torch.ops.aten.clamp.default, torch.ops.aten.clamp_.default)
_QUOTIENTS = (torch.ops.aten.div.Tensor, torch.ops.aten.div_.Tensor)
_ROUNDINGS = (torch.ops.aten.round.default, torch.ops.aten.round_.default)

Slots = Mapping[str, tuple[str, Tensor]]
"""Of `program.tensor_slots`."""


@dataclass(frozen=True)
class ProgramTemplate:
    """A captured program, and what another stripped module must have in common with it.

    Attributes:
        captured: the program.
        form: of the module and the tensors it was captured of.
        limits: node → the path of the quantizer whose levels it clamps to.
    """

    captured: Captured
    form: dict[str, Any]
    limits: dict[Node, str]

    @classmethod
    def of(cls, captured: Captured, stripped: nn.Module, slots: Slots) -> ProgramTemplate | None:
        """The template of a capture; None where a level may stand in it in another form.

        Args:
            captured: the program.
            stripped: the module that was captured.
            slots: its tensors.
        """
        quantizers = _quantizers(stripped)
        if any(isinstance(quantizer.zero_point, Tensor) for quantizer in quantizers.values()):
            return None
        names = {f"{path}.scale": path for path in quantizers}
        paths = {slots[slot][0]: path for slot, path in names.items() if slot in slots}
        limits: dict[Node, str] = {}
        for node in captured.program.graph.nodes:
            name = _scale_of(node, captured.program, sorted({name for name, _ in slots.values()}))
            if name not in paths:
                continue
            path = paths[name]
            if tuple(node.args[1:]) != _bounds(quantizers[path]):
                return None
            limits[node] = path
        if set(limits.values()) != set(quantizers):
            return None
        return cls(captured, _form(stripped, slots), limits)

    def filled(self, stripped: nn.Module, slots: Slots) -> Captured | None:
        """The program with the levels of another stripped module; None where that is of another form.

        The program is changed in place.
        """
        if _form(stripped, slots) != self.form:
            return None
        quantizers = _quantizers(stripped)
        for node, path in self.limits.items():
            node.args = (node.args[0], *_bounds(quantizers[path]))
        self.captured.program.graph_module.recompile()
        return self.captured


def _quantizers(stripped: nn.Module) -> dict[str, Quantizer]:
    """The quantizers that are on, by path."""
    return {
        path: module
        for path, module in stripped.named_modules()
        if isinstance(module, Quantizer) and module.enabled
    }


def _bounds(quantizer: Quantizer) -> tuple[int, int]:
    low, high = quantizer.levels
    assert isinstance(quantizer.zero_point, int)
    return low - quantizer.zero_point, high - quantizer.zero_point


def _form(stripped: nn.Module, slots: Slots) -> dict[str, Any]:
    """What must be equal: modules, quantizers that are on, how weights are decoded, types and shapes."""
    form: dict[str, Any] = {}
    for path, module in stripped.named_modules():
        form[path] = type(module).__name__
        if isinstance(module, Quantizer):
            own = (module.enabled, module.granularity, module.logarithmic, module.scale_format, module.frozen)
            form[path] = (type(module).__name__, *own)
        elif isinstance(module, Dequantize):
            form[path] = (module.dtype, module.granularity)
    for slot, (name, value) in slots.items():
        form[f"{slot}:"] = (name, value.dtype, tuple(value.shape))
    return form


def _scale_of(node: Node, program: ExportedProgram, names: list[str]) -> str:
    """The name of the scale that a node clamps the quotients of; "" of any other node."""
    if node.target not in _CLAMPS:
        return ""
    rounded = node.args[0]
    if not isinstance(rounded, Node) or rounded.target not in _ROUNDINGS:
        return ""
    quotient = rounded.args[0]
    if not isinstance(quotient, Node) or quotient.target not in _QUOTIENTS:
        return ""
    scale = quotient.args[1]
    while isinstance(scale, Node) and len(scale.all_input_nodes) == 1:
        scale = scale.all_input_nodes[0]
    if not isinstance(scale, Node) or scale.op != "placeholder":
        return ""
    # The tensors are the first argument, sorted by name.
    inputs: dict[Any, str] = dict(zip(program.graph_signature.user_inputs, names, strict=False))
    return inputs.get(scale.name, "")
