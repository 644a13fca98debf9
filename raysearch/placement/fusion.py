"""Weights that servers fuse: parallel projections of one tensor, and the experts of a block.

Found in the captured graph, by what operations read and where their results meet, and by no name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

from raysearch.placement.capture import CapturedGraph, Operation
from raysearch.placement.graph import root_of
from raysearch.placement.weight_reads import EINSUM, PRODUCTS, read_weight
from raysearch.records.components import connected_components

PARALLEL, EXPERTS = "parallel", "experts"
STRUCTURES = (PARALLEL, EXPERTS)
"""What a profile may name as fused."""

ATTENTION = "aten.scaled_dot_product_attention"
ELEMENTWISE = frozenset({"aten.mul", "aten.mul_"})
BROADCASTING = frozenset(
    {*ELEMENTWISE, "aten.add", "aten.add_", "aten.sub", "aten.sub_", "aten.div", "aten.div_"}
)
"""Operations in which one value of a smaller operand meets whole rows of the other."""

MEETINGS = frozenset({*ELEMENTWISE, *PRODUCTS, EINSUM, ATTENTION})
"""Operations that multiply what they read."""


@dataclass(frozen=True)
class Fusion:
    """Weights that are one to a server.

    Attributes:
        weights: their names, in graph order.
        reason: what they have in common, for people.
    """

    weights: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class _Projection:
    """One call of a linear layer: the weight, the root of what it reads, and how many outputs it has."""

    weight: str
    root: str
    num_outputs: int


@dataclass
class _Trace:
    """What of some projections' results is in a tensor.

    Attributes:
        factors: weight → whether it is there element for element; False: it was only a factor of whole rows
            of what else is there.
        is_alone: whether nothing else that depends on the model's inputs is.
    """

    factors: dict[str, bool]
    is_alone: bool


def find_fusions(graph: CapturedGraph, structures: Collection[str]) -> tuple[Fusion, ...]:
    """The weights that belong together where a server fuses the given structures.

    "parallel": linear layers that read one tensor, and whose results are multiplied with each other before
    another layer mixes them: query, key and value, whose product is an attention, a gate and what it gates,
    or the low-rank parts of a latent attention. A result that multiplies whole rows of the others, as the
    decay of a linear attention or a router does, is parallel only to its like.

    "experts": all layers of the branches that one layer's result, the router's, weighs: they read what the
    router reads, and are at least two layers deep.

    Args:
        graph: the captured graph.
        structures: of `STRUCTURES`, what is fused.
    """
    projections = dict(_projections(graph))
    fusions: list[Fusion] = []
    if PARALLEL in structures:
        fusions += _parallel(graph, projections)
    if EXPERTS in structures:
        fusions += _experts(graph, projections)
    return _merged(fusions, projections)


def _projections(graph: CapturedGraph) -> Iterator[tuple[str, _Projection]]:
    """Name of the operation → projection, of every linear layer that reads one tensor."""
    for op in graph.operations.values():
        weight = read_weight(graph, op)
        if weight is None or weight.kind != "linear" or len(weight.inputs) != 1:
            continue
        source = weight.inputs[0][1]
        if source not in graph.constants:
            yield op.name, _Projection(weight.parameter, root_of(graph, source), op.shape[-1])


def _merged(fusions: Iterable[Fusion], projections: Mapping[str, _Projection]) -> tuple[Fusion, ...]:
    """One fusion where several share a weight, as those of an expert and of all experts do."""
    listed = tuple(fusions)
    weights = dict.fromkeys(projection.weight for projection in projections.values())
    pairs = [(fusion.weights[0], other) for fusion in listed for other in fusion.weights[1:]]
    merged = []
    for members in connected_components(weights, pairs):
        reasons = [fusion.reason for fusion in listed if fusion.weights[0] in members]
        if reasons:
            # The widest structure is found last, and explains the others.
            merged.append(Fusion(members, reasons[-1]))
    return tuple(merged)


def _parallel(graph: CapturedGraph, projections: Mapping[str, _Projection]) -> Iterator[Fusion]:
    readers: dict[str, dict[str, str]] = {}
    for name, projection in projections.items():
        readers.setdefault(projection.root, {})[name] = projection.weight
    for weight_of in readers.values():
        names = tuple(dict.fromkeys(weight_of.values()))
        if len(names) < 2:
            continue
        meetings = _meetings(graph, weight_of)
        for members in connected_components(names, meetings):
            if len(members) > 1:
                meets = {kind for pair, kind in meetings.items() if pair[0] in members}
                # Rotations and gates are elementwise, whether there is an attention or not.
                where = "one attention" if meets != {"product"} else "one product"
                yield Fusion(members, f"they read one tensor and meet in {where}")


def _meetings(graph: CapturedGraph, weight_of: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """Pairs of weights whose results are multiplied with each other → "attention" or "product".

    Args:
        graph: the captured graph.
        weight_of: name of the operation → weight, of layers that read one tensor.
    """
    pairs: dict[tuple[str, str], str] = {}
    traces: dict[str, _Trace] = {}
    for op in graph.operations.values():
        if op.name in weight_of:
            traces[op.name] = _Trace({weight_of[op.name]: True}, is_alone=True)
            continue
        parts = [_broadcast(graph, op, name, traces[name]) for name in op.sources if name in traces]
        if not parts:
            continue
        trace = _joined(graph, op, traces, parts)
        if _is_layer(graph, op) and not (trace.is_alone and len(trace.factors) == 1):
            continue  # another layer mixes the results
        if op.op in MEETINGS:
            kind = "product" if op.op in ELEMENTWISE else "attention"
            for pair in _crossed(parts):
                pairs.setdefault(pair, kind)
        traces[op.name] = trace
    return pairs


def _broadcast(graph: CapturedGraph, op: Operation, name: str, trace: _Trace) -> dict[str, bool]:
    """The factors in one operand, a smaller one of which meets whole rows of the other."""
    is_smaller = prod(graph.operations[name].shape) < prod(op.shape)
    if op.op in BROADCASTING and is_smaller:
        return dict.fromkeys(trace.factors, False)
    return trace.factors


def _joined(
    graph: CapturedGraph, op: Operation, traces: Mapping[str, _Trace], parts: Iterable[Mapping[str, bool]]
) -> _Trace:
    factors: dict[str, bool] = {}
    for part in parts:
        for weight, is_whole in part.items():
            factors[weight] = is_whole or factors.get(weight, False)
    others = [name for name in op.sources if name not in graph.constants]
    is_alone = all(name in traces and traces[name].is_alone for name in others)
    return _Trace(factors, is_alone)


def _crossed(parts: Iterable[Mapping[str, bool]]) -> Iterator[tuple[str, str]]:
    """Pairs of weights in different operands, both whole or both factors of rows.

    Where both operands have both, something mixed them before, and is multiplied with itself.
    """
    before: dict[str, bool] = {}
    for part in parts:
        for weight, is_whole in part.items():
            likes = [other for other in before if other != weight and before[other] == is_whole]
            yield from ((other, weight) for other in likes if not (weight in before and other in part))
        before |= part


def _is_layer(graph: CapturedGraph, op: Operation) -> bool:
    return any(name in graph.parameters for name in op.sources) and read_weight(graph, op) is not None


def _experts(graph: CapturedGraph, projections: Mapping[str, _Projection]) -> Iterator[Fusion]:
    experts: dict[str, dict[str, None]] = {}
    for op in graph.operations.values():
        if op.op not in ELEMENTWISE:
            continue
        for share, value in (op.arguments[:2], op.arguments[1::-1]):
            router = _router_of(graph, op, share, projections)
            if router and value:
                branch = _branch(graph, value, router, projections)
                experts.setdefault(router, {}).update(dict.fromkeys(branch))
    for router, weights in experts.items():
        if len(weights) > 1:
            reason = f"they are the experts that {projections[router].weight} routes to"
            yield Fusion(tuple(weights), reason)


def _router_of(
    graph: CapturedGraph, op: Operation, share: str, projections: Mapping[str, _Projection]
) -> str:
    """The layer that alone makes a factor of whole rows; "" where none does, or it has one output."""
    if not share or prod(graph.operations[share].shape) >= prod(op.shape):
        return ""
    layers, is_closed = _layers_before(graph, share, projections, root="")
    if len(layers) != 1 or not is_closed or projections[layers[0]].num_outputs < 2:
        return ""
    return layers[0]


def _branch(
    graph: CapturedGraph, value: str, router: str, projections: Mapping[str, _Projection]
) -> tuple[str, ...]:
    """Weights between the tensor that the router reads and a value that it weighs; none of a single layer."""
    root = projections[router].root
    weights: list[str] = []
    depth = 0
    waiting, visited = [value], {router}
    while waiting:
        layers, is_closed = _layers_before(graph, waiting.pop(), projections, root)
        if not is_closed:
            return ()
        for layer in layers:
            if layer in visited:
                continue
            visited.add(layer)
            weights.append(projections[layer].weight)
            if projections[layer].root != root:
                depth += 1
                waiting.append(projections[layer].root)
    return tuple(weights) if depth else ()


def _layers_before(
    graph: CapturedGraph, name: str, projections: Mapping[str, _Projection], root: str
) -> tuple[tuple[str, ...], bool]:
    """The next layers above a tensor, and whether nothing else feeds it but constants and a given root."""
    layers: list[str] = []
    waiting, visited = [name], {name}
    while waiting:
        op = graph.operations[waiting.pop()]
        if op.name in projections:
            layers.append(op.name)
            continue
        if op.name == root or op.name in graph.constants:
            continue
        if op.op == "input":
            return (), False
        for source in op.sources:
            if source not in visited:
                visited.add(source)
                waiting.append(source)
    return tuple(layers), True
