"""How a task's data call its model: which arguments, of which shapes; found without running the model."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from raysearch.errors import TaskError
from raysearch.evaluation.batches import Batch, own_batch, tensors_of
from raysearch.evaluation.calls.call_form import argument_names, in_order
from raysearch.evaluation.forward import Forward, frozen_eval

BATCH = "batch"
"""The symbol of dimensions that count samples."""

OpenDims = Mapping[int, Mapping[int, str]]
"""Leaf of the example inputs → dimension → symbol: equal symbols are equal sizes in every call."""

NO_OPEN_DIMS: OpenDims = MappingProxyType({})


@dataclass(frozen=True)
class CallForm:
    """One form of call that suits all data.

    Attributes:
        example_inputs: the arguments in the order of the forward's.
        open_dims: dimensions besides the batch whose size differs between batches.
    """

    example_inputs: tuple[Any, ...]
    open_dims: OpenDims = field(default_factory=dict)


class _Reached(BaseException):
    """Ends a forward where the model is called; no `Exception`, which a task's own forward may catch."""


def record_calls(model: nn.Module, forward: Forward, batches: Iterable[Batch]) -> list[dict[str, Any]]:
    """The arguments by name with which a forward calls a model, once for every form of batch.

    The model itself is not run. Nothing is told where a forward does not call the model as a whole, or fails.

    Args:
        model: left as found.
        forward: (model, batch) → outputs.
        batches: those of a form that was seen are left out.
    """
    calls: list[dict[str, Any]] = []
    signature = inspect.signature(model.forward)

    def reach(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(dict(signature.bind(*args, **kwargs).arguments))
        raise _Reached

    seen: set[str] = set()
    handle = model.register_forward_pre_hook(reach, with_kwargs=True)
    try:
        with frozen_eval(model), torch.no_grad():
            for batch in batches:
                form = _form(batch)
                if form in seen:
                    continue
                seen.add(form)
                try:
                    # A forward may take the batch apart.
                    forward(model, own_batch(batch))
                except _Reached:
                    continue
                except Exception:
                    # What is wrong with it is told where the model is really run.
                    return []
                return []
    finally:
        handle.remove()
    return calls


def find_call_form(
    model: nn.Module, example_inputs: tuple[Any, ...], recorded: Iterable[Mapping[str, Any]]
) -> CallForm:
    """The form of call that is exported: the example's, its sizes open where those of the data differ.

    Constants that every call gives and the example does not, such as `return_dict=True`, are put into it.

    Args:
        model: its forward names the arguments.
        example_inputs: what it is captured with.
        recorded: of `record_calls`.

    Raises:
        TaskError: an argument is given in some batches and not in others, or not as in the example.
    """
    complete = list(recorded)
    if not complete:
        return CallForm(example_inputs)
    calls = [_used(model, call) for call in complete]
    shown = dict(zip(argument_names(model), example_inputs, strict=False))
    example = _used(model, shown)
    example |= _constants(calls, example)
    # A default that is given every time, by place perhaps, has its place in the file too.
    always = _constants(complete, example)
    example |= {name: value for name, value in always.items() if shown.get(name) is not None}
    _check_names(model, example, calls)
    example_inputs = _as_inputs(model, example, example_inputs)
    vectors = _sizes(model, example_inputs, calls)
    open_dims = _open_dims(vectors)
    columns = [vectors[leaf, dim] for leaf, dims in open_dims.items() for dim in dims]
    if any(sizes[0] < 2 for sizes in columns):
        # A size of 1 would become a constant.
        large = [index for index in range(len(calls)) if all(sizes[index + 1] > 1 for sizes in columns)]
        if large:
            example_inputs = _as_inputs(model, calls[large[0]], example_inputs)
    return CallForm(example_inputs, open_dims)


def _used(model: nn.Module, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call that are not the forward's defaults."""
    used: dict[str, Any] = {}
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if name not in call:
            continue
        value = call[name]
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            # They have places alone, which stay as the example has them.
            continue
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            # Constants there, such as `return_dict`, cannot be arguments of an exported graph.
            used.update({key: extra for key, extra in value.items() if not _is_constant(extra)})
        elif not _is_constant(value) or value is not parameter.default:
            used[name] = value
    return used


def _is_constant(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _constants(calls: Sequence[Mapping[str, Any]], example: Mapping[str, Any]) -> dict[str, Any]:
    """Constants that every call gives alike and the example lacks."""
    first, *others = calls
    return {
        name: value
        for name, value in first.items()
        if name not in example and _is_constant(value) and all(call.get(name) == value for call in others)
    }


def _check_names(model: nn.Module, example: Mapping[str, Any], calls: list[dict[str, Any]]) -> None:
    for name in dict.fromkeys(name for call in [example, *calls] for name in call):
        users = [call for call in calls if name in call]
        if 0 < len(users) < len(calls):
            raise TaskError(
                f"the argument '{name}' of {type(model).__name__}.forward is given by some batches and not "
                f"by others, and an exported model takes one form of call. Give it in every batch (a mask of "
                f"ones where nothing is masked), or in none."
            )
        if users and name not in example:
            raise TaskError(
                f"the data call {type(model).__name__}.forward with '{name}', which the example inputs lack. "
                f"Give Task(example_inputs=...) as a dict of all that the data give: "
                f"{', '.join(calls[0])}."
            )
        if not users and name in example and not _is_constant(example[name]):
            raise TaskError(
                f"the example inputs give '{name}' of {type(model).__name__}.forward, and no batch does. "
                f"Leave it out of Task(example_inputs=...), or give it in every batch."
            )


def _as_inputs(model: nn.Module, call: Mapping[str, Any], otherwise: tuple[Any, ...]) -> tuple[Any, ...]:
    """A call in the order of the forward's arguments; what takes `*args` stays as it is."""
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return otherwise
    return in_order(model, (), call)


def _sizes(
    model: nn.Module, example_inputs: tuple[Any, ...], calls: list[dict[str, Any]]
) -> dict[tuple[int, int], tuple[int, ...]]:
    """(leaf, dimension) → its size in the example and in every call, where all have that dimension."""
    names = argument_names(model)
    rows = [_leaves(example_inputs)]
    for call in calls:
        rows.append(_leaves(tuple(call.get(name) for name in names[: len(example_inputs)])))
    vectors: dict[tuple[int, int], tuple[int, ...]] = {}
    for leaf, value in enumerate(rows[0]):
        if not isinstance(value, Tensor) or any(len(row) != len(rows[0]) for row in rows):
            continue
        column = [row[leaf] for row in rows]
        shapes = [tuple(each.shape) for each in column if isinstance(each, Tensor)]
        if len(shapes) < len(rows) or len({len(shape) for shape in shapes}) > 1:
            continue
        for dim in range(value.ndim):
            vectors[leaf, dim] = tuple(shape[dim] for shape in shapes)
    return vectors


def _leaves(values: tuple[Any, ...]) -> list[Any]:
    return list(pytree.tree_leaves(values))


def _open_dims(vectors: Mapping[tuple[int, int], tuple[int, ...]]) -> dict[int, dict[int, str]]:
    """The dimensions whose sizes differ, but for those that count samples in dimension 0."""
    batch = next((sizes for (_, dim), sizes in vectors.items() if dim == 0), ())
    symbols: dict[tuple[int, ...], str] = {batch: BATCH}
    open_dims: dict[int, dict[int, str]] = {}
    for (leaf, dim), sizes in vectors.items():
        is_batch = dim == 0 and sizes == batch
        if is_batch or len(set(sizes)) == 1:
            continue
        symbol = symbols.setdefault(sizes, f"size{len(symbols)}")
        open_dims.setdefault(leaf, {})[dim] = symbol
    return open_dims


def _form(batch: Batch) -> str:
    """What of a batch may change how the model is called: names, types, and all sizes."""
    return str([(path, tensor.dtype, tuple(tensor.shape)) for path, tensor in tensors_of(batch)])
