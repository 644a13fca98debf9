"""Graphs whose sizes stay open: the batch, and whatever else differs between the batches of the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from raysearch.errors import ExportError
from raysearch.evaluation.calls.model_calls import BATCH, NO_OPEN_DIMS, OpenDims

Graph = TypeVar("Graph")
Attempt = tuple[tuple[Any, ...], tuple[Any, ...] | None]
"""Arguments, and `dynamic_shapes` of them or None."""


def capture_open(
    example_inputs: tuple[Any, ...],
    capture: Callable[[tuple[Any, ...], tuple[Any, ...] | None], Graph | None],
    open_dims: OpenDims,
) -> tuple[Graph, int | None]:
    """Capture a model with its batch and other dimensions open; where it fixes the batch, at the example's.

    Args:
        example_inputs: positional arguments of the model's forward.
        capture: (arguments, `dynamic_shapes` of them or None) → the graph, or None where the exporter closed
            a dimension that it was to keep open.
        open_dims: dimensions besides the batch that must stay open.

    Returns:
        The graph, and the only batch size it takes, or None when any will do.

    Raises:
        ExportError: a dimension other than the batch could not be kept open.
        Exception: what the first attempt that failed raised, where no attempt gave a graph.
    """
    widened, batch = widen(example_inputs)
    named = (widened, dims_of(widened, batch, open_dims))
    if not open_dims:
        attempts: list[Attempt] = [named, (example_inputs, None)]
    else:
        # Sizes that hang together by more than equality have no names of their own.
        loose = dims_of(widened, batch, open_dims, is_named=False)
        unbatched = dims_of(example_inputs, None, open_dims, is_named=False)
        attempts = [named, (widened, loose), (example_inputs, unbatched)]
    failure: Exception | None = None
    for index, (arguments, dims) in enumerate(attempts):
        try:
            graph = capture(arguments, dims)
        except Exception as error:
            failure = failure or error
            continue
        if graph is not None:
            return graph, batch_of(example_inputs) if index and index == len(attempts) - 1 else None
    if open_dims:
        reason = "" if failure is None else f": {str(failure).strip().splitlines()[0][:300]}"
        raise ExportError(
            f"the batches of the data differ in {describe(example_inputs, open_dims)}, and the model's graph "
            f"fixes it at the example's{reason}. Bring all batches to one size (pad or crop them), or mend "
            f"what fixes it in the forward."
        ) from failure
    assert failure is not None
    raise failure


def describe(example_inputs: tuple[Any, ...], open_dims: OpenDims) -> str:
    """The open dimensions for people: "dimension 1 of input 0 (shape (2, 20))"."""
    leaves = pytree.tree_leaves(example_inputs)
    parts = []
    for leaf, dims in open_dims.items():
        for dim in dims:
            parts.append(f"dimension {dim} of input {leaf} (shape {tuple(leaves[leaf].shape)})")
    return " and ".join(parts)


def dims_of(
    arguments: tuple[Any, ...],
    batch: int | None,
    open_dims: OpenDims = NO_OPEN_DIMS,
    is_named: bool = True,
) -> tuple[Any, ...]:
    """`dynamic_shapes` of some arguments.

    Args:
        arguments: of a forward.
        batch: the size of dimension 0 where it counts samples; None leaves the batch closed.
        open_dims: further dimensions that stay open.
        is_named: whether these have symbols of their own, or whatever the exporter finds.
    """
    symbols: dict[str, Any] = {BATCH: Dim(BATCH)}
    leaves, spec = pytree.tree_flatten(arguments)
    dims: list[Any] = []
    for index, value in enumerate(leaves):
        own: dict[int, Any] = {}
        for dim, symbol in open_dims.get(index, {}).items():
            own[dim] = symbols.setdefault(symbol, Dim(symbol)) if is_named else Dim.AUTO
        if batch is not None and isinstance(value, Tensor) and _counts(value, batch):
            own.setdefault(0, symbols[BATCH])
        dims.append(own or None)
    built: tuple[Any, ...] = pytree.tree_unflatten(dims, spec)
    return built


def num_open(dims: tuple[Any, ...] | None) -> int:
    """How many dimensions `dynamic_shapes` leave open; 0 where they are None."""
    shapes = pytree.tree_leaves(dims, is_leaf=lambda value: isinstance(value, dict) and _is_shape(value))
    return sum(len(shape) for shape in shapes if isinstance(shape, dict))


def stays_open(program: ExportedProgram, dims: tuple[Any, ...] | None) -> bool:
    """Whether as many sizes of a program's inputs are symbols as were to stay open."""
    inputs = set(program.graph_signature.user_inputs)
    values = [node.meta.get("val") for node in program.graph.nodes if node.name in inputs]
    tensors = [value for value in values if isinstance(value, Tensor)]
    sizes: list[Any] = [size for tensor in tensors for size in tensor.shape]
    return sum(_is_symbol(size) for size in sizes) >= num_open(dims)


def _is_symbol(size: Any) -> bool:
    # A size that was found to be constant may still be a symbolic integer, of that one value.
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def _is_shape(value: dict[Any, Any]) -> bool:
    """Whether it is a dimension → symbol mapping, not an argument that is a dict."""
    return bool(value) and all(isinstance(key, int) for key in value)


def widen(example_inputs: tuple[Any, ...]) -> tuple[tuple[Any, ...], int]:
    """Example inputs of two or more samples and their batch size; a batch of 1 would become a constant."""
    batch = batch_of(example_inputs)
    if batch != 1:
        return example_inputs, batch
    return pytree.tree_map_only(
        Tensor, lambda t: torch.cat([t, t]) if _counts(t, 1) else t, example_inputs
    ), 2


def batch_of(example_inputs: tuple[Any, ...]) -> int:
    """Samples in some example inputs: dimension 0 of their first tensor.

    Raises:
        ExportError: they hold no tensor with a dimension.
    """
    for leaf in pytree.tree_leaves(example_inputs):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return int(leaf.shape[0])
    raise ExportError(
        "the example inputs hold no tensor with a dimension; give the positional arguments of the model's "
        "forward as a tuple, dimension 0 of each counting samples."
    )


def _counts(value: Tensor, batch: int) -> bool:
    return value.ndim > 0 and value.shape[0] == batch
