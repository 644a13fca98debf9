"""The captured graph: torch.export's view of a model, as plain values keyed by names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from raysearch.errors import CaptureError
from raysearch.evaluation.calls.call_form import exportable
from raysearch.evaluation.forward import frozen_eval
from raysearch.evaluation.quiet import quiet

_AS_TUPLE = (
    "give Task(example_inputs=...) as a tuple of the positional arguments, or as a dict of arguments by name"
)
_CACHE_WORDS = ("dynamiccache", "past_key_values", "encoderdecodercache", "cache_utils")
_MISFIT = ("forward", "required argument", "positional argument", "unexpected keyword")


@dataclass(frozen=True)
class Operation:
    """One aten call of the captured graph.

    Attributes:
        name: the node's name.
        op: overload packet name, such as "aten.conv2d".
        module: dotted path of the innermost module that makes the call, its first one if it has several.
        call: names one call of that module; a module that runs twice has two.
        arguments: per positional argument the name of the node it comes from, "" if it is no tensor.
        shape: shape of the result; () if it is no single tensor.
        is_float: whether the result is a floating-point tensor.
        sources: names of all nodes it reads, those inside lists too, each once.
        operands: names of all nodes among its positional arguments in order, those inside lists too.
        literals: per positional argument its value if it is no tensor, else None.
    """

    name: str
    op: str
    module: str
    call: str
    arguments: tuple[str, ...]
    shape: tuple[int, ...]
    is_float: bool
    sources: tuple[str, ...] = ()
    operands: tuple[str, ...] = ()
    literals: tuple[Any, ...] = ()


@dataclass(frozen=True)
class CapturedGraph:
    """All operations in order, and which node names are parameters.

    Attributes:
        operations: name → operation; inputs, parameters and buffers have op "input".
        parameters: node name → parameter's qualified name.
        constants: names of nodes whose value no input of the model reaches: parameters, buffers, and what is
            computed from them alone.
    """

    operations: dict[str, Operation]
    parameters: dict[str, str]
    constants: frozenset[str]


def capture(model: nn.Module, example_inputs: tuple[Any, ...]) -> CapturedGraph:
    """Capture a model in eval mode by `torch.export.export(strict=False)`.

    The model is left as it was. The captured program serves as analysis only; nothing runs it.

    Raises:
        CaptureError: the model cannot be captured; states the construct and what to do.
    """
    if not isinstance(example_inputs, tuple):
        raise CaptureError(
            f"{type(model).__name__} cannot be captured: example_inputs is a "
            f"{type(example_inputs).__name__}. What to do: {_AS_TUPLE}."
        )
    try:
        with frozen_eval(model), quiet(), torch.no_grad(), exportable(model):
            program = torch.export.export(model, example_inputs, strict=False)
    except Exception as error:
        raise CaptureError(_explain(model, error)) from error
    inputs = set(program.graph_signature.user_inputs)
    modules = first_names(model.named_modules(remove_duplicate=False))
    parameters = first_names(model.named_parameters(remove_duplicate=False))
    operations: dict[str, Operation] = {}
    constants: set[str] = set()
    for node in program.graph.nodes:
        if node.op == "output":
            continue
        op = str(node.target).rsplit(".", 1)[0] if node.op == "call_function" else "input"
        operations[node.name] = _operation(node, op, modules)
        if node.name not in inputs and all(source.name in constants for source in node.all_input_nodes):
            constants.add(node.name)
    named = program.graph_signature.inputs_to_parameters
    by_node = {node: parameters[name] for node, name in named.items()}
    return CapturedGraph(operations, by_node, frozenset(constants))


def first_names(named: Iterable[tuple[str, object]]) -> dict[str, str]:
    """Every name of a thing → its first name; what is registered twice, or tied, has several."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in named}


def _operation(node: torch.fx.Node, op: str, modules: Mapping[str, str]) -> Operation:
    stack = node.meta.get("nn_module_stack") or {}
    calls = list(stack)
    paths = [str(path) for path, _ in stack.values()]
    value = node.meta.get("val")
    arguments = tuple(arg.name if isinstance(arg, torch.fx.Node) else "" for arg in node.args)
    # A module's second call is written `path@1`.
    path = paths[-1].split("@", 1)[0] if paths else ""
    shape: tuple[int, ...] = ()
    is_float = False
    if isinstance(value, torch.Tensor):
        shape = tuple(int(size) for size in value.shape)
        is_float = value.is_floating_point()
    return Operation(
        name=node.name,
        op=op,
        module=modules.get(path, path),
        call=str(calls[-1]) if calls else "",
        arguments=arguments,
        shape=shape,
        is_float=is_float,
        sources=tuple(source.name for source in node.all_input_nodes),
        operands=tuple(_nodes_of(node.args)),
        literals=tuple(None if isinstance(arg, torch.fx.Node) else arg for arg in node.args),
    )


def _nodes_of(argument: Any) -> Iterator[str]:
    if isinstance(argument, torch.fx.Node):
        yield argument.name
    elif isinstance(argument, list | tuple):
        for part in argument:
            yield from _nodes_of(part)


def _explain(model: nn.Module, error: Exception) -> str:
    text = str(error).strip()
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    where = ""
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("File ") and "site-packages/torch" not in line:
            where = f" at {line}"
    lowered = text.lower()
    if "data-dependent" in lowered or "guardondatadependent" in type(error).__name__.lower():
        cause = "a branch or a size that depends on the values of a tensor"
        remedy = "replace it by torch.where or torch.cond, or compute the branch outside the model"
    elif isinstance(error, TypeError) and any(word in lowered for word in _MISFIT):
        cause = "example_inputs that do not fit the model's forward"
        remedy = _AS_TUPLE
    elif any(word in lowered for word in _CACHE_WORDS):
        cause = "the cache of keys and values that its forward returns"
        remedy = "set model.config.use_cache = False in the task, or give the model use_cache=False"
    else:
        cause = "a construct that torch.export does not take"
        remedy = "try torch.export.export(model, example_inputs, strict=False) alone and fix what it names"
    return (
        f"{type(model).__name__} cannot be captured: {cause}{where} ({type(error).__name__}: {first[:300]}). "
        f"What to do: {remedy}."
    )
