"""Which layer a node of an ONNX graph belongs to, also after onnxruntime has fused and renamed nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from raysearch.records import QuantizationPoint

OPERATIONS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Gather")
LABEL = re.compile(r"layer(\d+)\.")


@dataclass
class LayerSeconds:
    """Time of a layer's nodes.

    Attributes:
        kernel: of nodes that read its weight.
        rest: of what follows until the next layer: activation functions, additions, quantizers, copies.
        num_nodes: how many nodes these are.
        operation: of the slowest kernel.
    """

    kernel: float = 0.0
    rest: float = 0.0
    num_nodes: int = 0
    operation: str = ""
    slowest: float = -1.0


def label_layers(proto: Any, weights: Mapping[str, QuantizationPoint]) -> list[str]:
    """Give every node, and every value but the inputs, a name that tells its layer; onnxruntime keeps it.

    A node of no layer belongs to the last layer before it, or to the first one if there is none. Fused nodes
    take their name from a node or from a value, so both carry it.

    Args:
        proto: a graph of `finish`; changed in place.
        weights: weight points, in graph order; layer i is the i-th.

    Returns:
        Weights that no node was found to read.
    """
    graph, position = proto.graph, {name: index for index, name in enumerate(weights)}
    weight_of = _find_layers(graph, weights)
    owners = _spread(graph, {index: position[name] for index, name in weight_of.items()})
    fixed = {value.name for value in graph.input}
    renamed: dict[str, str] = {}
    for index, node in enumerate(graph.node):
        node.name = f"layer{owners[index]}.{index}"
        for slot, name in enumerate(node.output):
            if name and name not in fixed:
                renamed[name] = f"layer{owners[index]}.{index}.{slot}"
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for value in graph.output:
        value.name = renamed.get(value.name, value.name)
    read = set(weight_of.values())
    return [name for name in weights if name not in read]


def layer_seconds(optimized: Any, node_seconds: Mapping[str, float]) -> dict[int, LayerSeconds]:
    """Add up the nodes of every layer of a labelled graph that onnxruntime has optimized.

    Args:
        optimized: the graph that onnxruntime ran.
        node_seconds: name of a node → its time.

    Returns:
        Layer → times; −1 holds nodes of no layer, among them those that onnxruntime left without a name.
    """
    layers: dict[int, LayerSeconds] = {}
    owner_of: dict[str, int] = {}
    remaining = dict(node_seconds)
    matrices = {value.name for value in optimized.graph.initializer if len(value.dims) > 1}
    for node in optimized.graph.node:
        owner = _labelled((node.name, *node.output))
        if owner is None:
            owner = max((owner_of[name] for name in node.input if name in owner_of), default=-1)
        owner_of.update(dict.fromkeys(node.output, owner))
        if node.name not in remaining:
            continue
        seconds = remaining.pop(node.name)
        layer = layers.setdefault(owner, LayerSeconds())
        layer.num_nodes += 1
        if not matrices.intersection(node.input):
            layer.rest += seconds
            continue
        layer.kernel += seconds
        if seconds > layer.slowest:
            layer.operation, layer.slowest = node.op_type, seconds
    if remaining:
        loose = layers.setdefault(-1, LayerSeconds())
        loose.rest += sum(remaining.values())
        loose.num_nodes += len(remaining)
    return layers


def _labelled(names: tuple[str, ...]) -> int | None:
    for name in names:
        if match := LABEL.search(name):
            return int(match.group(1))
    return None


def _find_layers(graph: Any, weights: Mapping[str, QuantizationPoint]) -> dict[int, str]:
    """Index of a node → the weight it reads.

    A weight is known by the name of its initializer, and by the module that its node is named after: the
    exporter merges equal weights, and a module may have several.
    """
    in_module: dict[str, list[str]] = {}
    for name, point in weights.items():
        for site in point.sites:
            in_module.setdefault(site.module, []).append(name)
    weight_of: dict[int, str] = {}
    module_of: dict[str, str] = {}
    for index, node, traced in _weighted(graph, weights):
        module = node.name.split("#")[0]
        # A weight that a node of another module reads already belongs to that module.
        free = [name for name in traced if module_of.get(name, module) == module]
        own = in_module.get(module, [])
        # Attention projects its result by a weight of a module below its own.
        near = [*(n for n in free if n in own), *(n for n in free if n.startswith(f"{module}."))]
        chosen = [*near, *own, *free, *traced]
        if chosen:
            weight_of[index] = chosen[0]
            module_of.setdefault(chosen[0], module)
    return weight_of


def _weighted(graph: Any, weights: Mapping[str, Any]) -> Iterator[tuple[int, Any, list[str]]]:
    """Nodes that combine data with a constant matrix: index, node, the weights it comes from."""
    sources = {value.name: _weight_name(value.name, weights) for value in graph.initializer}
    ranks = {value.name: len(value.dims) for value in graph.initializer}
    for index, node in enumerate(graph.node):
        constants = [name for name in node.input if name in sources]
        traced = list(dict.fromkeys(weight for name in constants for weight in sources[name]))
        rank = max((ranks.get(name, 0) for name in constants), default=0)
        # What is computed from constants alone is a constant, and comes from the same weights.
        if len(constants) == len([name for name in node.input if name]):
            sources.update(dict.fromkeys(node.output, traced))
            ranks.update(dict.fromkeys(node.output, rank))
        elif node.op_type in OPERATIONS and rank > 1:
            yield index, node, traced


def _weight_name(name: str, weights: Mapping[str, Any]) -> list[str]:
    """The weight that an initializer is named after: codes may have a suffix for their container."""
    without_suffix = name.rsplit(".", 1)[0]
    return [weight for weight in (name, without_suffix) if weight in weights][:1]


def _spread(graph: Any, layers: Mapping[int, int]) -> list[int]:
    """The layer of every node; constants belong to the node that reads them."""
    latest: dict[str, int] = {}
    at: list[int | None] = []
    for index, node in enumerate(graph.node):
        before = [latest[name] for name in node.input if name in latest]
        at.append(index if index in layers else max(before, default=None))
        if at[index] is not None:
            latest.update(dict.fromkeys(node.output, at[index]))
    first = min(layers, default=None)
    readers = {name: index for index, node in reversed(list(enumerate(graph.node))) for name in node.input}
    for index in reversed(range(len(at))):
        if at[index] is None:
            read = [at[readers[name]] for name in graph.node[index].output if name in readers]
            at[index] = read[0] if read else first
    return [layers[place] if place is not None else 0 for place in at]
