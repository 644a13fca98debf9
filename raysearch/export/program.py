"""architecture.pt2: the graph of a model whose tensors are all inputs, so that weights are stored once.

The program's forward takes (tensors, arguments): a dict of every parameter and buffer, integer weights as
`<name>.codes`, `<name>.scale`, `<name>.zero_point` and `<name>.minimum`, and the positional arguments of the
model's own forward. Codes are decoded in the graph, by the very operations of the stripped module.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from raysearch.controller import StrippedWeight
from raysearch.errors import ExportError, StorageError
from raysearch.evaluation.calls.call_form import exportable
from raysearch.evaluation.calls.model_calls import NO_OPEN_DIMS, OpenDims
from raysearch.evaluation.outputs import plain
from raysearch.evaluation.quiet import quiet
from raysearch.export.archive import checked_archive, compact_archive, is_operation
from raysearch.export.open_dims import capture_open, stays_open


@dataclass(frozen=True)
class Captured:
    """A captured program; `fixed_batch` is the only batch size it takes, or None when any will do."""

    program: ExportedProgram
    fixed_batch: int | None


class _FromTensors(nn.Module):
    def __init__(self, model: nn.Module, slots: Mapping[str, str]) -> None:
        super().__init__()
        # In a tuple, so that the model is no submodule: its tensors must not enter the program's state.
        self._parts = (model, dict(slots))

    def forward(self, tensors: dict[str, Tensor], arguments: tuple[Any, ...]) -> Any:
        model, slots = self._parts
        values = {slot: tensors[name] for slot, name in slots.items()}
        # Tied tensors are in `slots` already. With tie_weights, a module that is shared would be swapped
        # twice and keep the second value for good.
        return plain(torch.func.functional_call(model, values, arguments, tie_weights=False))


def weight_parts(weight: StrippedWeight) -> dict[str, Tensor]:
    """`<weight>.codes`, `<weight>.scale` and what it has of `<weight>.zero_point` and `<weight>.minimum`."""
    parts = {"codes": weight.codes, "scale": weight.scale}
    if weight.zero_point is not None:
        parts["zero_point"] = weight.zero_point
    if weight.minimum is not None:
        parts["minimum"] = weight.minimum
    return {f"{weight.name}.{part}": value for part, value in parts.items()}


def tensor_slots(model: nn.Module, weights: Mapping[str, StrippedWeight]) -> dict[str, tuple[str, Tensor]]:
    """Every place that holds a parameter or buffer → the name it is stored under, and the tensor.

    Parts of integer weights are named as `weight_parts` has them, other tensors by their first place. A
    module that is reached by several paths counts once; a tensor that several modules share has several
    places and one name.
    """
    names: dict[int, str] = {}
    for weight in weights.values():
        names |= {id(value): name for name, value in weight_parts(weight).items()}
    slots: dict[str, tuple[str, Tensor]] = {}
    for path, module in model.named_modules():
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for name, value in own:
            slot = f"{path}.{name}" if path else name
            slots[slot] = (names.setdefault(id(value), slot), value)
    return slots


def capture_program(
    model: nn.Module,
    slots: Mapping[str, tuple[str, Tensor]],
    example_inputs: tuple[Any, ...],
    open_dims: OpenDims = NO_OPEN_DIMS,
) -> Captured:
    """Capture a stripped module as a graph of its tensors and arguments.

    Dimension 0 of every argument that has the first tensor's batch size is left open; where the model fixes
    it, the graph takes that size alone. The model is left as it was.

    Args:
        model: the stripped module.
        slots: of `tensor_slots`.
        example_inputs: positional arguments of its forward.
        open_dims: dimensions besides the batch that stay open.

    Raises:
        ExportError: torch.export does not take the model.
    """
    wrapper = _FromTensors(model, {slot: name for slot, (name, _) in slots.items()})
    tensors = dict(sorted(slots.values(), key=lambda entry: entry[0]))

    def capture(arguments: tuple[Any, ...], dims: tuple[Any, ...] | None) -> ExportedProgram | None:
        # Tensors keep their shapes; only arguments have a batch.
        shapes = None if dims is None else (dict.fromkeys(tensors), dims)
        with quiet(), torch.no_grad(), exportable(model):
            program = torch.export.export(
                wrapper, (dict(tensors), arguments), dynamic_shapes=shapes, strict=False
            )
        return program if not open_dims or stays_open(program, dims) else None

    try:
        return Captured(*capture_open(example_inputs, capture, open_dims))
    except ExportError:
        raise
    except Exception as error:
        first_line = str(error).strip().split("\n", 1)[0][:300]
        raise ExportError(
            f"{type(model).__name__} cannot be captured for the target 'packed': {first_line}. Try "
            f"torch.export.export(model, example_inputs, strict=False) on the stripped model and mend what "
            f"it names, or export other targets."
        ) from error


def program_bytes(program: ExportedProgram) -> bytes:
    """The program as a file: only the graph, without example inputs, traces or paths of the machine.

    Raises:
        ExportError: it calls an operation that the loader refuses; names it.
    """
    program.example_inputs = None
    # Conditions on input shapes as Python source, which loading would execute; the operations check shapes.
    program._guards_code = []
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                _check_operation(node)
                for key in ("stack_trace", "torch_fn", "nn_module_stack", "source_fn_stack"):
                    node.meta.pop(key, None)
    sink = io.BytesIO()
    with quiet():
        torch.export.save(program, sink)
    return compact_archive(sink.getvalue())


def _check_operation(node: torch.fx.Node) -> None:
    operation = node.target
    if not isinstance(operation, torch._ops.OpOverload) or is_operation(f"torch.ops.{operation}"):
        return
    if operation.namespace in ("aten", "prims"):
        reason = "may read files, print or change what is not its own, so that no file is loaded with it"
    else:
        reason = "is of no library of torch, and a file is read back without the code that brings it"
    name: str = operation._schema.name
    raise ExportError(
        f"the model calls the operation '{name}', which {reason}. Write that part of the forward in "
        f"operations of torch's own; where only training needs '{name}', do so under "
        f"`if not self.training`."
    )


def load_program(data: bytes, where: str) -> nn.Module:
    """Read a program back, after `checked_archive`: nothing is unpickled, no foreign code is called.

    Raises:
        StorageError: the file is damaged, of another torch's layout, or holds what it must not hold.
    """
    try:
        checked = checked_archive(data, where)
        with quiet():
            return torch.export.load(io.BytesIO(checked)).module()
    except StorageError:
        raise
    except Exception as error:
        raise StorageError(
            f"{where} cannot be read by torch {torch.__version__}: {error!r:.300}. Retrieve it again, or use "
            f"the torch version that wrote it."
        ) from error
