"""What the captured graph says about quantizable operations: weights, input tensors, MACs, additions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from raysearch.placement.additions import ATEN_ADDITIONS, same_features
from raysearch.placement.capture import CapturedGraph, Operation
from raysearch.records import Site

CONVOLUTIONS = {"aten.conv1d": 1, "aten.conv2d": 2, "aten.conv3d": 3}
TRANSPOSED = {"aten.conv_transpose1d": 1, "aten.conv_transpose2d": 2, "aten.conv_transpose3d": 3}
LINEAR = "aten.linear"
EMBEDDING = "aten.embedding"

PASS_THROUGH = frozenset(
    {
        "aten.max_pool1d", "aten.max_pool2d", "aten.max_pool3d",
        "aten.adaptive_max_pool1d", "aten.adaptive_max_pool2d", "aten.adaptive_max_pool3d",
        "aten.flatten", "aten.view", "aten.reshape", "aten._unsafe_view", "aten.unflatten", "aten.expand",
        "aten.transpose", "aten.permute", "aten.t", "aten.squeeze", "aten.unsqueeze",
        "aten.dropout", "aten.feature_dropout", "aten.alias", "aten.clone", "aten.detach",
        "aten.contiguous", "aten.to", "aten.lift_fresh_copy",
    }
)  # fmt: skip
"""Operations after which a tensor holds values it held before: one quantizer serves both sides."""

GETITEM = "<built-in function getitem>"
SLICES = frozenset(
    {"aten.split", "aten.split_with_sizes", "aten.chunk", "aten.slice", "aten.narrow", "aten.detach", GETITEM}
)
"""Operations that take a part of a weight: attention over other keys splits its `in_proj_weight`."""


@dataclass
class WeightUse:
    """All uses of one parameter as a weight."""

    parameter: str
    axis: int
    macs: int = 0
    modules: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)


@dataclass
class Reading:
    """One place where a quantizable tensor is read: the root of the tensor, and the site."""

    root: str
    site: Site
    shape: tuple[int, ...]


@dataclass
class Addition:
    """One addition that reads two quantizable tensors: the module that executes it, and their roots."""

    owner: str
    roots: tuple[str, str]


@dataclass
class Reads:
    """Everything placement needs of the graph, in graph order."""

    weights: dict[str, WeightUse]
    readings: list[Reading]
    additions: list[Addition]
    addition_counts: Counter[str]


def read_graph(graph: CapturedGraph, leaf_modules: set[str]) -> Reads:
    """Walk the graph once.

    MACs per operation and sample, summed over all uses of a weight of shape (O, I/g, k…): convolution
    numel(W) · output positions; transposed convolution numel(W) · input positions; linear numel(W) · rows;
    embedding 0. Matrix products between activations are not counted.

    Args:
        graph: the captured graph.
        leaf_modules: modules whose first argument is the operation's input, so that a hook reaches it.
    """
    weights: dict[str, WeightUse] = {}
    readings: list[Reading] = []
    pairs: list[Addition] = []
    occurrence: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    batch = _batch_size(graph)
    for op in graph.operations.values():
        if op.op in ATEN_ADDITIONS and _is_residual(graph, op):
            index = occurrence[op.call]
            occurrence[op.call] += 1
            counts[op.module] = max(counts[op.module], index + 1)
            _read_addition(graph, op, index, readings, pairs)
        else:
            _read_layer(graph, op, batch, leaf_modules, weights, readings)
    return Reads(weights, readings, pairs, counts)


def _read_layer(
    graph: CapturedGraph,
    op: Operation,
    batch: int,
    leaf_modules: set[str],
    weights: dict[str, WeightUse],
    readings: list[Reading],
) -> None:
    is_embedding = op.op == EMBEDDING
    if op.op not in CONVOLUTIONS and op.op not in TRANSPOSED and op.op != LINEAR and not is_embedding:
        return
    position = 0 if is_embedding else 1
    parameter = _parameter_of(graph, op.arguments[position])
    if parameter is None:
        return
    axis = 1 if op.op in TRANSPOSED else 0
    use = weights.setdefault(parameter, WeightUse(parameter, axis))
    use.modules.append(op.module)
    if is_embedding:
        return
    source = graph.operations[op.arguments[0]]
    use.macs += _macs(graph, op, source, batch)
    if op.module not in leaf_modules or not source.is_float:
        use.inputs.append("")
        return
    root = root_of(graph, source.name)
    use.inputs.append(root)
    readings.append(Reading(root, Site(op.module, "input"), source.shape[1:]))


def _read_addition(
    graph: CapturedGraph, op: Operation, index: int, readings: list[Reading], pairs: list[Addition]
) -> None:
    a, b = op.arguments[:2]
    if a in graph.constants or b in graph.constants:
        return  # a position table or a mask of the model's own, not a residual
    for argument, name in enumerate((a, b)):
        site = Site(op.module, "add", occurrence=index, argument=argument)
        readings.append(Reading(root_of(graph, name), site, graph.operations[name].shape[1:]))
    pairs.append(Addition(op.module, (root_of(graph, a), root_of(graph, b))))


def root_of(graph: CapturedGraph, name: str) -> str:
    """The operation that made a tensor's values, above everything that only moves them."""
    while _moves(graph, graph.operations[name]) and graph.operations[name].arguments[0]:
        name = graph.operations[name].arguments[0]
    return name


def _moves(graph: CapturedGraph, op: Operation) -> bool:
    # Adaptive max pooling gives a pair (values, indices), of which only the values are floating point.
    is_part = op.op == GETITEM and graph.operations[op.arguments[0]].op in PASS_THROUGH
    return op.op in PASS_THROUGH or is_part


def _parameter_of(graph: CapturedGraph, name: str) -> str | None:
    while name and name not in graph.parameters and graph.operations[name].op in SLICES:
        name = graph.operations[name].arguments[0]
    return graph.parameters.get(name)


def _is_residual(graph: CapturedGraph, op: Operation) -> bool:
    if len(op.arguments) < 2 or not (op.arguments[0] and op.arguments[1]):
        return False
    a, b = (graph.operations[name] for name in op.arguments[:2])
    return a.is_float and b.is_float and same_features(a.shape, b.shape)


def _macs(graph: CapturedGraph, op: Operation, source: Operation, batch: int) -> int:
    weight = graph.operations[op.arguments[1]].shape
    numel = 1
    for size in weight:
        numel *= size
    if op.op == LINEAR:
        positions = _product(source.shape[:-1])
    elif op.op in TRANSPOSED:
        positions = _product(source.shape) // max(1, source.shape[-1 - TRANSPOSED[op.op]])
    else:
        positions = _product(op.shape) // max(1, op.shape[-1 - CONVOLUTIONS[op.op]])
    return numel * positions // max(1, batch)


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def _batch_size(graph: CapturedGraph) -> int:
    for op in graph.operations.values():
        if op.op == "input" and op.name not in graph.constants and op.shape:
            return op.shape[0]
    return 1
