"""The convolution, linear and embedding calls of one forward: which weight each reads, its input, its output.

A torch function mode sees every such call, of a module or functional. An output is kept as the edge of the
autograd graph that it left, so a ReLU or an addition that overwrites it later changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn import functional as F

from raysearch.evaluation.curvature.graphs import with_edge
from raysearch.hooks.functions import CallMode
from raysearch.hooks.layer_arguments import CONVOLUTIONS, LAYER_ARGUMENTS, TRANSPOSED

_KINDS: dict[Any, str] = {
    F.linear: "linear",
    F.embedding: "embedding",
    **dict.fromkeys(CONVOLUTIONS, "conv"),
    **dict.fromkeys(TRANSPOSED, "conv_transpose"),
}


@dataclass(frozen=True)
class Call:
    """One call that reads a weight.

    Attributes:
        kind: "conv", "conv_transpose", "linear" or "embedding".
        weight: name of the parameter.
        part: (offset, shape, stride) of the part of the parameter that is read.
        input: what the call reads beside the weight.
        settings: the call's other arguments by name.
        output: edge of the autograd graph from which the output's cotangent is read.
        shape: of the output.
        sources: nodes from which all arguments but the weight came.
    """

    kind: str
    weight: str
    part: tuple[int, tuple[int, ...], tuple[int, ...]]
    input: Tensor
    settings: Mapping[str, Any]
    output: GradientEdge
    shape: tuple[int, ...]
    sources: tuple[Node, ...]

    @property
    def signature(self) -> tuple[Any, ...]:
        """Equal for the same call in the next forward, whatever the batch."""
        return (self.kind, self.weight, self.part, len(self.shape))


class CallCapture(CallMode):
    """While active, records the calls that read one of the given parameters, in the order they are made."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._names: dict[int, str] = {}
        for name, weight in weights.items():
            pointer = weight.untyped_storage().data_ptr()
            # Parameters that share memory cannot be told apart by it.
            self._names[pointer] = "" if pointer in self._names else name

    def on_call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record the call, if it is one of those."""
        if func not in _KINDS:
            return func(*args, **kwargs)
        kind = _KINDS[func]
        bound = dict(zip(LAYER_ARGUMENTS[func], args, strict=False)) | kwargs
        name = self._name_of(bound["weight"])
        if not name or not _has_plain_gradient(kind, bound):
            return func(*args, **kwargs)
        others = (value for key, value in bound.items() if key != "weight")
        sources = tuple(
            get_gradient_edge(v).node for v in others if isinstance(v, Tensor) and v.requires_grad
        )
        output = func(*args, **kwargs)
        if not output.requires_grad:
            return output
        output, edge = with_edge(output)
        weight = bound["weight"]
        part = (weight.storage_offset(), tuple(weight.shape), weight.stride())
        settings = {k: v for k, v in bound.items() if k not in ("input", "weight", "bias")}
        shape = tuple(output.shape)
        self.calls.append(Call(kind, name, part, bound["input"].detach(), settings, edge, shape, sources))
        return output

    def _name_of(self, weight: Any) -> str:
        if not isinstance(weight, Tensor) or not weight.requires_grad:
            return ""
        return self._names.get(weight.untyped_storage().data_ptr(), "")


def _has_plain_gradient(kind: str, bound: Mapping[str, Any]) -> bool:
    if kind == "embedding":
        return not (bound.get("max_norm") or bound.get("scale_grad_by_freq") or bound.get("sparse"))
    weight = bound["weight"]
    if kind == "linear":
        return bool(weight.ndim == 2 and bound["input"].ndim >= 2)
    return bool(bound["input"].ndim == weight.ndim)


def reached_otherwise(output: Tensor, calls: list[Call], weights: Mapping[str, Tensor]) -> set[str]:
    """Weights on which the output depends by a way that leads through none of the recorded calls.

    Walks the autograd graph; below the output of a recorded call it goes on with all arguments but the
    weight.

    Args:
        output: a tensor that the recorded forward led to.
        calls: the recorded calls.
        weights: name → parameter, each a leaf of the graph.
    """
    if not output.requires_grad:
        return set()
    sources = {call.output.node: call.sources for call in calls}
    leaves = {get_gradient_edge(weight).node: name for name, weight in weights.items()}
    waiting = [get_gradient_edge(output).node]
    visited = set(waiting)
    while waiting:
        node = waiting.pop()
        following = sources.get(node)
        if following is None:
            following = tuple(below for below, _ in node.next_functions if below is not None)
        for below in following:
            if below not in visited:
                visited.add(below)
                waiting.append(below)
    return {leaves[node] for node in visited if node in leaves}


def parts_are_apart(calls: list[Call]) -> bool:
    """Whether the parts of one weight that the calls read are equal or share no element."""
    parts = sorted({call.part for call in calls})
    if any(not _is_dense(shape, stride) for _, shape, stride in parts):
        return False
    ends = [offset + prod(shape) for offset, shape, _ in parts]
    return all(end <= part[0] for end, part in zip(ends, parts[1:], strict=False))


def _is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    expected = 1
    for step, size in sorted((step, size) for step, size in zip(stride, shape, strict=True) if size > 1):
        if step != expected:
            return False
        expected *= size
    return True
