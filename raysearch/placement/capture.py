"""The captured graph: torch.export's view of a model, as plain values keyed by names."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from raysearch.errors import CaptureError
from raysearch.evaluation.forward import frozen_eval


@dataclass(frozen=True)
class Operation:
    """One aten call of the captured graph.

    Attributes:
        name: the node's name.
        op: overload packet name, such as "aten.conv2d".
        module: dotted path of the innermost module that makes the call.
        call: names one call of that module; a module that runs twice has two.
        arguments: per positional argument the name of the node it comes from, "" if it is no tensor.
        shape: shape of the result; () if it is no single tensor.
        is_float: whether the result is a floating-point tensor.
    """

    name: str
    op: str
    module: str
    call: str
    arguments: tuple[str, ...]
    shape: tuple[int, ...]
    is_float: bool


@dataclass(frozen=True)
class CapturedGraph:
    """All operations in order, and which node names are parameters.

    Attributes:
        operations: name → operation; inputs, parameters and buffers have op "input".
        parameters: node name → parameter's qualified name.
        constants: names of nodes that are parameters, buffers or lifted constants.
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
    logger = logging.getLogger("torch.export")
    level = logger.level
    try:
        with frozen_eval(model), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            logger.setLevel(logging.CRITICAL)
            program = torch.export.export(model, example_inputs, strict=False)
    except Exception as error:
        raise CaptureError(_explain(model, error)) from error
    finally:
        logger.setLevel(level)
    signature = program.graph_signature
    constants = {
        *signature.inputs_to_parameters,
        *signature.inputs_to_buffers,
        *signature.inputs_to_lifted_tensor_constants,
    }
    operations = {}
    for node in program.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            operations[node.name] = _operation(node, "input")
        elif node.op == "call_function":
            operations[node.name] = _operation(node, str(node.target).rsplit(".", 1)[0])
    return CapturedGraph(operations, dict(signature.inputs_to_parameters), frozenset(constants))


def _operation(node: torch.fx.Node, op: str) -> Operation:
    stack = node.meta.get("nn_module_stack") or {}
    calls = list(stack)
    paths = [str(path) for path, _ in stack.values()]
    value = node.meta.get("val")
    arguments = tuple(arg.name if isinstance(arg, torch.fx.Node) else "" for arg in node.args)
    return Operation(
        name=node.name,
        op=op,
        module=paths[-1].split("@", 1)[0] if paths else "",
        call=str(calls[-1]) if calls else "",
        arguments=arguments,
        shape=tuple(int(size) for size in value.shape) if isinstance(value, torch.Tensor) else (),
        is_float=isinstance(value, torch.Tensor) and value.is_floating_point(),
    )


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
    elif isinstance(error, TypeError | AttributeError) and "forward" in lowered:
        cause = "example_inputs that do not fit the model's forward"
        remedy = "give Task(example_inputs=...) as a tuple of the positional arguments"
    else:
        cause = "a construct that torch.export does not take"
        remedy = "try torch.export.export(model, example_inputs, strict=False) alone and mend what it names"
    return (
        f"{type(model).__name__} cannot be captured: {cause}{where} ({type(error).__name__}: {first[:300]}). "
        f"What to do: {remedy}."
    )
