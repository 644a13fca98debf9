"""architecture.pt2: the graph of a model whose tensors are all inputs, so that weights are stored once.

The program's forward takes (tensors, arguments): a dict of every parameter and buffer, integer weights as
`<name>.codes`, `<name>.scale` and `<name>.zero_point`, and the positional arguments of the model's own
forward. Codes are decoded in the graph, by the very operations of the stripped module.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from raysearch.controller import StrippedWeight
from raysearch.errors import ExportError, StorageError
from raysearch.evaluation.quiet import quiet
from raysearch.export.archive import checked_archive, compact_archive
from raysearch.export.outputs import plain

Graph = TypeVar("Graph")


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
    """`<weight>.codes`, `<weight>.scale` and, unless it is symmetric and signed, `<weight>.zero_point`."""
    parts = {"codes": weight.codes, "scale": weight.scale}
    if weight.zero_point is not None:
        parts["zero_point"] = weight.zero_point
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
    model: nn.Module, slots: Mapping[str, tuple[str, Tensor]], example_inputs: tuple[Any, ...]
) -> Captured:
    """Capture a stripped module as a graph of its tensors and arguments.

    Dimension 0 of every argument that has the first tensor's batch size is left open; where the model fixes
    it, the graph takes that size alone. The model is left as it was.

    Args:
        model: the stripped module.
        slots: of `tensor_slots`.
        example_inputs: positional arguments of its forward.

    Raises:
        ExportError: torch.export does not take the model.
    """
    wrapper = _FromTensors(model, {slot: name for slot, (name, _) in slots.items()})
    tensors = dict(sorted(slots.values(), key=lambda entry: entry[0]))

    def capture(arguments: tuple[Any, ...], dims: tuple[Any, ...] | None) -> ExportedProgram:
        # Tensors keep their shapes; only arguments have a batch.
        shapes = None if dims is None else (dict.fromkeys(tensors), dims)
        with quiet(), torch.no_grad():
            return torch.export.export(
                wrapper, (dict(tensors), arguments), dynamic_shapes=shapes, strict=False
            )

    try:
        return Captured(*capture_open_batch(example_inputs, capture))
    except Exception as error:
        first_line = str(error).strip().split("\n", 1)[0][:300]
        raise ExportError(
            f"{type(model).__name__} cannot be captured for the target 'packed': {first_line}. Try "
            f"torch.export.export(model, example_inputs, strict=False) on the stripped model and mend what "
            f"it names, or export other targets."
        ) from error


def capture_open_batch(
    example_inputs: tuple[Any, ...],
    capture: Callable[[tuple[Any, ...], tuple[Any, ...] | None], Graph | None],
) -> tuple[Graph, int | None]:
    """Capture a model with its batch dimension open; where the model fixes it, at the example's batch size.

    Args:
        example_inputs: positional arguments of the model's forward.
        capture: (arguments, `dynamic_shapes` of them or None) → the graph, or None where the exporter closed
            the dimension that it was to keep open.

    Returns:
        The graph, and the only batch size it takes, or None when any will do.

    Raises:
        Exception: what the first attempt that failed raised, where no attempt gave a graph.
    """
    widened, batch = widen(example_inputs)
    attempts: list[tuple[tuple[Any, ...], tuple[Any, ...] | None]] = [
        (widened, batch_dims(widened, batch)),
        (example_inputs, None),
    ]
    failure: Exception | None = None
    for arguments, dims in attempts:
        try:
            graph = capture(arguments, dims)
        except Exception as error:
            failure = failure or error
            continue
        if graph is not None:
            return graph, None if dims is not None else _batch_of(example_inputs)
    assert failure is not None
    raise failure


def widen(example_inputs: tuple[Any, ...]) -> tuple[tuple[Any, ...], int]:
    """Example inputs of two or more samples and their batch size; a batch of 1 would become a constant."""
    batch = _batch_of(example_inputs)
    if batch != 1:
        return example_inputs, batch
    return pytree.tree_map_only(
        Tensor, lambda t: torch.cat([t, t]) if _counts(t, 1) else t, example_inputs
    ), 2


def batch_dims(arguments: tuple[Any, ...], batch: int) -> tuple[Any, ...]:
    """`dynamic_shapes` that leave the batch dimension of each argument open."""
    open_batch = Dim("batch")
    dims: tuple[Any, ...] = pytree.tree_map(
        lambda value: {0: open_batch} if isinstance(value, Tensor) and _counts(value, batch) else None,
        arguments,
    )
    return dims


def program_bytes(program: ExportedProgram) -> bytes:
    """The program as a file: only the graph, without example inputs, traces or paths of the machine."""
    program.example_inputs = None
    # Conditions on input shapes as Python source, which loading would execute; the operations check shapes.
    program._guards_code = []
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for key in ("stack_trace", "torch_fn", "nn_module_stack", "source_fn_stack"):
                    node.meta.pop(key, None)
    sink = io.BytesIO()
    with quiet():
        torch.export.save(program, sink)
    return compact_archive(sink.getvalue())


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


def _batch_of(example_inputs: tuple[Any, ...]) -> int:
    for leaf in pytree.tree_leaves(example_inputs):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return int(leaf.shape[0])
    raise ExportError(
        "the example inputs hold no tensor with a dimension; give the positional arguments of the model's "
        "forward as a tuple, dimension 0 of each counting samples."
    )


def _counts(value: Tensor, batch: int) -> bool:
    return value.ndim > 0 and value.shape[0] == batch
