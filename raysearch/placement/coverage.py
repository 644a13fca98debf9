"""Which weights of a model stay float, and why."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from raysearch.placement.capture import CapturedGraph
from raysearch.placement.graph import PASS_THROUGH
from raysearch.placement.left_out import LeftOut
from raysearch.placement.weight_reads import SLICES, TURNS
from raysearch.records import Coverage, FloatWeight, QuantizationPoint

_MOVES = frozenset({*PASS_THROUGH, *SLICES, *TURNS})


def measure_coverage(
    model: nn.Module,
    graph: CapturedGraph,
    left_out: Mapping[str, LeftOut],
    points: Mapping[str, QuantizationPoint],
) -> Coverage:
    """What of a model's parameters quantizers act on, and why the others of two dimensions stay float.

    Args:
        model: the float model.
        graph: it, captured.
        left_out: weights that could be quantized and are not → why.
        points: those that are.
    """
    num_quantizable, quantizable_bytes = 0, 0
    floating: list[FloatWeight] = []
    for name, parameter in model.named_parameters():
        if name in points:
            num_quantizable += parameter.numel()
            quantizable_bytes += parameter.numel() * parameter.element_size()
        elif parameter.ndim > 1:
            entry = left_out.get(name)
            if entry is None:
                entry = LeftOut(_reason(graph, name), is_chosen=False)
            floating.append(FloatWeight(name, tuple(parameter.shape), entry.reason, entry.is_chosen))
    tensors = [*model.parameters(), *model.buffers()]
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return Coverage(num_quantizable, quantizable_bytes, num_bytes, tuple(floating))


def _reason(graph: CapturedGraph, parameter: str) -> str:
    """What reads a parameter, in place of a layer."""
    readers: dict[str, list[str]] = {}
    for op in graph.operations.values():
        for source in op.sources:
            readers.setdefault(source, []).append(op.name)
    nodes = [node for node, name in graph.parameters.items() if name == parameter]
    waiting, visited = list(nodes), set(nodes)
    steps: dict[str, None] = {}
    ends: dict[str, None] = {}
    while waiting:
        for name in readers.get(waiting.pop(), ()):
            op = graph.operations[name]
            if op.name not in graph.constants and op.op not in _MOVES:
                ends[op.op.removeprefix("aten.")] = None
                continue
            if op.op not in _MOVES:
                steps[op.op.removeprefix("aten.")] = None
            if name not in visited:
                visited.add(name)
                waiting.append(name)
    if not ends:
        return "the forward of the example inputs does not read it"
    if steps:
        return f"computed in the forward ({', '.join(steps)}) before {', '.join(ends)} reads it"
    return f"read by {', '.join(ends)}, which no quantizer serves as a layer"
