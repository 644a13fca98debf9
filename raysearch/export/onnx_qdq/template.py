"""A captured graph that takes the values of another stripping of the same model, in place of a new capture.

Two strippings differ in codes, scales, zero points, levels and whatever training changed, but not in what is
computed with them; and to capture takes longest of all that an export does.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from raysearch.controller.stripped import Dequantize
from raysearch.export.onnx_qdq.values import SCOPES, add_initializer, constant, replace_node
from raysearch.quantizer import Quantizer

if TYPE_CHECKING:
    import onnx_ir as ir

Array = npt.NDArray[Any]
Form = dict[str, tuple[str, tuple[int, ...]]]
"""Path of a module, or name of a tensor and a colon → its kind and shape."""

QDQ = ("QuantizeLinear", "DequantizeLinear")
CONTAINER_TOP = 255
"""The greatest code of an activation's container, which needs no limit."""


@dataclass(frozen=True)
class GraphTemplate:
    """A captured graph, and what another stripped module must have in common with it.

    Attributes:
        model: the graph of `onnx_ir`, named.
        fixed_batch: the only batch size it takes, or None when any will do.
        form: of the module it was captured of.
        integers: its integer tensors that no quantizer owns, which are constants of the graph.
    """

    model: ir.Model
    fixed_batch: int | None
    form: Form
    integers: dict[str, Array]

    @classmethod
    def of(
        cls, model: ir.Model, program: ExportedProgram, stripped: nn.Module, fixed_batch: int | None
    ) -> GraphTemplate | None:
        """The template of a capture; None where a value of the module may stand in it in another form.

        Args:
            model: the named graph.
            program: what the exporter made it of.
            stripped: the module that was captured.
            fixed_batch: the only batch size that the graph takes, or None.
        """
        state = _state(stripped)
        own = _owned(stripped)
        if _folded(program) - own or _is_merged(model, stripped, own):
            return None
        template = cls(model.clone(), fixed_batch, _form(stripped, state, own), _integers(state, own))
        # The mapping from values to places is right if it gives the graph's own values.
        for node, quantizer in _quantizers_of(model, stripped):
            if _top(node) != _limit(quantizer):
                return None
        for node, index, array in _values(model, stripped, state):
            present = constant(node.inputs[index])
            if present is None or present.dtype != array.dtype or not np.array_equal(present, array):
                return None
        template._forget(state)
        return template

    def filled(self, stripped: nn.Module) -> ir.Model | None:
        """The graph with the values of another stripped module; None where that is of another form."""
        import onnx_ir.passes.common as passes

        state = _state(stripped)
        if _form(stripped, state, _owned(stripped)) != self.form:
            return None
        if any(not np.array_equal(array, state[name]) for name, array in self.integers.items()):
            return None
        model = self.model.clone()
        for node, quantizer in _quantizers_of(model, stripped):
            _set_top(model.graph, node, _limit(quantizer))
        _fill(model, stripped, state)
        # As the exporter does.
        passes.DeduplicateInitializersPass()(model)
        return model

    def _forget(self, state: dict[str, Array]) -> None:
        """Let go of the values that others take the place of, which may be as large as the model."""
        for name, value in self.model.graph.initializers.items():
            if name in state and name not in self.integers:
                value.const_value = None


def _state(stripped: nn.Module) -> dict[str, Array]:
    """Every parameter and buffer by the name that the exporter gives it."""
    return {name: value.detach().cpu().numpy() for name, value in _tensors(stripped).items()}


def _tensors(stripped: nn.Module) -> dict[str, Tensor]:
    # Tied tensors by every name: which of them the exporter takes is its own.
    parameters = stripped.named_parameters(remove_duplicate=False)
    return dict(parameters) | dict(stripped.named_buffers(remove_duplicate=False))


def _modules(stripped: nn.Module) -> dict[str, nn.Module]:
    return dict(stripped.named_modules(remove_duplicate=False))


def _owned(stripped: nn.Module) -> set[str]:
    """Names of what quantizers and integer weights hold, which stands in the graph at places of its own."""
    names: set[str] = set()
    for path, module in _modules(stripped).items():
        if isinstance(module, Quantizer | Dequantize):
            tensors = (*module.named_parameters(), *module.named_buffers())
            names |= {f"{path}.{name}" for name, _ in tensors}
        if isinstance(module, Dequantize):
            names.add(_codes_name(path))
    return names


def _form(stripped: nn.Module, state: dict[str, Array], own: set[str]) -> Form:
    """What must be equal: modules, quantizers that are on, types and shapes of tensors and codes."""
    form: Form = {}
    for path, module in _modules(stripped).items():
        form[path] = (type(module).__name__, ())
        if isinstance(module, Dequantize):
            form[path] = (str(module.dtype), state[_codes_name(path)].shape)
        elif isinstance(module, Quantizer):
            form[path] = ("on" if module.enabled else "off", tuple(module.scale.shape))
    return form | {
        f"{name}:": (str(array.dtype), array.shape) for name, array in state.items() if name not in own
    }


def _integers(state: dict[str, Array], own: set[str]) -> dict[str, Array]:
    # A norm counts its batches in one, which no forward in eval mode reads.
    return {
        name: array
        for name, array in state.items()
        if array.dtype.kind in "iub" and name not in own and not name.endswith("num_batches_tracked")
    }


def _codes_name(path: str) -> str:
    """Where a parametrization's codes are."""
    return f"{path.rpartition('.')[0]}.original"


def _folded(program: ExportedProgram) -> set[str]:
    """Parameters and buffers from which alone something is computed, which the exporter may fold."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    sources: dict[torch.fx.Node, set[str]] = {}
    folded: set[str] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            sources[node] = {names[node.name]}
        elif node.op == "call_function" and all(each in sources for each in node.all_input_nodes):
            sources[node] = {name for each in node.all_input_nodes for name in sources[each]}
            folded |= sources[node]
    return folded


def _is_merged(model: ir.Model, stripped: nn.Module, own: set[str]) -> bool:
    """Whether an initializer may stand for a second tensor, as the exporter lets it for equal ones."""
    arrays: dict[tuple[str, tuple[int, ...]], list[Array]] = {}
    for value in model.graph.initializers.values():
        array = constant(value)
        if array is not None:
            arrays.setdefault((str(array.dtype), array.shape), []).append(array)
    tensors = {name: tensor for name, tensor in _tensors(stripped).items() if name not in own}
    there = {id(tensor) for name, tensor in tensors.items() if name in model.graph.initializers}
    for tensor in tensors.values():
        if id(tensor) in there or not tensor.is_floating_point():
            continue
        array = tensor.detach().cpu().numpy()
        alike = arrays.get((str(array.dtype), array.shape), [])
        if any(np.array_equal(each, array) for each in alike):
            return True
    return False


def _module_of(node: Any, modules: dict[str, nn.Module]) -> tuple[str, nn.Module | None]:
    """The module that a node was traced in, after its path."""
    scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    path = scopes[-2] if len(scopes) > 1 else ""
    return path, modules.get(path)


def _quantizers_of(model: ir.Model, stripped: nn.Module) -> list[tuple[Any, Quantizer]]:
    """Every QuantizeLinear with its quantizer."""
    modules = _modules(stripped)
    pairs = []
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            _, module = _module_of(node, modules)
            if isinstance(module, Quantizer):
                pairs.append((node, module))
    return pairs


def _values(
    model: ir.Model, stripped: nn.Module, state: dict[str, Array]
) -> Iterator[tuple[Any, int, Array]]:
    """Every place of the graph that takes a value of the module: node, input, value."""
    modules = _modules(stripped)
    codes = {_codes_name(path) for path, module in modules.items() if isinstance(module, Dequantize)}
    for node in model.graph:
        path, module = _module_of(node, modules) if node.op_type in QDQ else ("", None)
        if isinstance(module, Quantizer):
            scale, zero, _ = module.onnx_grid()
        elif isinstance(module, Dequantize):
            _, scale, zero = module.onnx_grid()
            stored: Any = node.inputs[0]
            maker = stored.producer()
            yield (node if maker is None else maker), 0, state[_codes_name(path)]
        else:
            for index, value in enumerate(node.inputs):
                if value is not None and value.name in state and value.name not in codes:
                    yield node, index, state[value.name]
            continue
        yield node, 1, scale.detach().numpy()
        yield node, 2, zero.numpy()


def _fill(model: ir.Model, stripped: nn.Module, state: dict[str, Array]) -> None:
    """Put the values of a module in their places."""
    import onnx_ir as ir

    modules = _modules(stripped)
    for node in model.graph:
        if node.op_type == "DequantizeLinear":
            _, module = _module_of(node, modules)
            if isinstance(module, Dequantize):
                node.attributes.clear()
                for name, number in module.onnx_grid()[0].items():
                    node.attributes[name] = ir.AttrInt64(name, number)
    places: dict[Any, list[tuple[Any, int, Array]]] = {}
    for node, index, array in _values(model, stripped, state):
        places.setdefault(node.inputs[index], []).append((node, index, array))
    for value, uses in places.items():
        is_whole = {(use.node, use.idx) for use in value.uses()} == {(node, index) for node, index, _ in uses}
        first = uses[0][2]
        if is_whole and all(_are_same(array, first) for _, _, array in uses):
            tensor = ir.Tensor(first, name=value.name)
            value.const_value, value.type = tensor, ir.TensorType(tensor.dtype)
            value.shape = ir.Shape(first.shape)
            continue
        for node, index, array in uses:
            node.replace_input_with(index, add_initializer(model.graph, f"{value.name}.own", array))
        if not value.uses():
            del model.graph.initializers[value.name]


def _are_same(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and np.array_equal(one, other)


def _limit(quantizer: Quantizer) -> int:
    low, high = quantizer.levels
    return high - low


def _limiter(node: Any) -> Any:
    """The Min that holds the codes of a QuantizeLinear to its levels, or None."""
    readers = [use.node for use in node.outputs[0].uses()]
    return readers[0] if len(readers) == 1 and readers[0].op_type == "Min" else None


def _top(node: Any) -> int:
    """The greatest code that a QuantizeLinear lets through."""
    limiter = _limiter(node)
    top = None if limiter is None else constant(limiter.inputs[1])
    return CONTAINER_TOP if top is None else int(top)


def _set_top(graph: ir.Graph, node: Any, limit: int) -> None:
    """Hold the codes of a QuantizeLinear to a limit."""
    import onnx_ir as ir

    limiter = _limiter(node)
    if limit == CONTAINER_TOP:
        if limiter is not None:
            replace_node(graph, limiter, node.outputs[0])
        return
    codes = node.outputs[0]
    top = add_initializer(graph, f"{codes.name}.top", np.array(limit, np.uint8))
    if limiter is not None:
        limiter.replace_input_with(1, top)
        return
    limiter = ir.node("Min", [codes, top])
    limiter.name = ""
    limited = limiter.outputs[0]
    limited.name, limited.type, limited.shape = f"{codes.name}.limited", codes.type, codes.shape
    for use in list(codes.uses()):
        if use.node is not limiter:
            use.node.replace_input_with(use.idx, limited)
    graph.insert_after(node, limiter)
