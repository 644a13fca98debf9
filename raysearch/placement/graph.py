"""What the captured graph says about quantizable operations: weights, tensors, MACs, calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from raysearch.hooks.functions import ATEN_CALLS, counts
from raysearch.placement.capture import CapturedGraph, Operation
from raysearch.placement.recurrent import read_recurrent
from raysearch.placement.weight_reads import EINSUM, GETITEM, WeightRead, read_weight
from raysearch.records import NetworkNode, Site

CONCATENATION = "aten.cat"

PASS_THROUGH = frozenset(
    {
        "aten.max_pool1d", "aten.max_pool2d", "aten.max_pool3d",
        "aten.adaptive_max_pool1d", "aten.adaptive_max_pool2d", "aten.adaptive_max_pool3d",
        "aten.flatten", "aten.view", "aten.reshape", "aten._unsafe_view", "aten.unflatten", "aten.expand",
        "aten.transpose", "aten.permute", "aten.t", "aten.squeeze", "aten.unsqueeze",
        "aten.dropout", "aten.feature_dropout", "aten.alias", "aten.clone", "aten.detach",
        "aten.contiguous", "aten.to", "aten.lift_fresh_copy", "aten.pad", "aten.constant_pad_nd",
    }
)  # fmt: skip
"""Operations after which a tensor holds values it held before: one quantizer serves both sides."""

FUSED = frozenset(
    f"aten.{name}{suffix}"
    for name in (
        "batch_norm", "relu", "relu6", "hardtanh", "clamp", "silu", "gelu", "hardswish", "leaky_relu", "elu",
        "tanh", "sigmoid",
    )
    for suffix in ("", "_")
)  # fmt: skip
"""Operations that kernels fuse with the convolution or linear layer before them."""


@dataclass(frozen=True)
class WeightInput:
    """One tensor that a weight is multiplied with.

    Attributes:
        root: the operation that made its values, "" where no quantizer reaches it.
        site: where it is read; None where no quantizer reaches it.
    """

    root: str = ""
    site: Site | None = None


@dataclass
class WeightUse:
    """All uses of one parameter as a weight.

    Attributes:
        parameter: its qualified name.
        axis: its channel axis.
        macs: multiply-accumulates of one sample, over all operations.
        kinds: of the operations: "conv", "depthwise", "conv_transpose", "linear", "recurrent" or "embedding".
        outputs: names of the operations.
        inputs: what the operations multiply it with.
    """

    parameter: str
    axis: int
    macs: int = 0
    kinds: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    inputs: list[WeightInput] = field(default_factory=list)


@dataclass(frozen=True)
class TensorRead:
    """One place where a quantizable tensor is read.

    Attributes:
        root: the operation that made the tensor's values, see `root_of`.
        site: where it is read.
        shape: of one sample.
        kind: of the operation that reads it.
    """

    root: str
    site: Site
    shape: tuple[int, ...]
    kind: str


@dataclass(frozen=True)
class Addition:
    """One addition that reads two quantizable tensors: the module that executes it, and their roots."""

    owner: str
    roots: tuple[str, str]


@dataclass(frozen=True)
class GraphReads:
    """Everything placement needs of the graph, in graph order.

    Attributes:
        weights: parameter → its uses.
        tensors: where quantizable tensors are read.
        additions: the residual ones.
        counts: (module, kind) → calls that the module's own forward makes.
        concatenations: (root of the result, roots of the parts).
    """

    weights: dict[str, WeightUse] = field(default_factory=dict)
    tensors: list[TensorRead] = field(default_factory=list)
    additions: list[Addition] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    concatenations: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)


def read_graph(
    graph: CapturedGraph,
    leaf_modules: set[str],
    folded: Container[str] = (),
) -> GraphReads:
    """Walk the graph once.

    MACs are per sample and summed over all uses of a weight, see `read_weight`. Matrix products between
    activations are not counted.

    Args:
        graph: the captured graph.
        leaf_modules: modules whose first argument is the operation's input, so that a hook reaches it.
        folded: modules inside which the batch is not dimension 0, or is one with another; of what they read
            only the number of values a sample is known.
    """
    reads = GraphReads()
    occurrence: Counter[tuple[str, str]] = Counter()
    batch = _batch_size(graph)
    for op in graph.operations.values():
        kind, operands = _counted(graph, op)
        index = occurrence[op.call, kind]
        if kind:
            occurrence[op.call, kind] += 1
            reads.counts[op.module, kind] = max(reads.counts[op.module, kind], index + 1)
        weights = _read_weights(graph, op, leaf_modules)
        for weight in weights:
            _read_layer(graph, op, weight, index, batch, leaf_modules, reads)
        if weights:
            continue
        if kind in ("add", "matmul", "attention", "pool", "einsum"):
            _read_operands(graph, op, kind, operands, index, reads)
        elif op.op == CONCATENATION:
            parts = (root_of(graph, name) for name in op.sources if name not in graph.constants)
            reads.concatenations.append((op.name, tuple(parts)))
    return replace(reads, tensors=[_of_sample(read, batch, folded) for read in reads.tensors])


def _read_weights(graph: CapturedGraph, op: Operation, leaf_modules: set[str]) -> tuple[WeightRead, ...]:
    weight = read_weight(graph, op)
    return read_recurrent(graph, op, leaf_modules) if weight is None else (weight,)


def _of_sample(read: TensorRead, batch: int, folded: Container[str]) -> TensorRead:
    """The read of a batch, with the shape of one sample."""
    if read.site.module in folded:
        return replace(read, shape=(prod(read.shape) // batch,))
    return replace(read, shape=read.shape[1:])


def _counted(graph: CapturedGraph, op: Operation) -> tuple[str, tuple[str, ...]]:
    """Kind and operands of a call that the eager run counts too; ("", ()) for any other operation."""
    if op.op == EINSUM:
        # A tap counts those of two operands.
        is_counted = len(op.operands) == 2 and _counts(graph, "einsum", op.operands)
        return ("einsum", op.operands) if is_counted else ("", ())
    kind, positions = ATEN_CALLS.get(op.op, ("", ()))
    if not kind or len(op.arguments) <= max(positions):
        return "", ()
    names = tuple(op.arguments[position] for position in positions)
    return (kind, names) if all(names) and _counts(graph, kind, names) else ("", ())


def _counts(graph: CapturedGraph, kind: str, names: Sequence[str]) -> bool:
    operands = [graph.operations[name] for name in names]
    return counts(kind, [o.shape for o in operands], all(o.is_float for o in operands))


def _read_layer(
    graph: CapturedGraph,
    op: Operation,
    weight: WeightRead,
    index: int,
    batch: int,
    leaf_modules: set[str],
    reads: GraphReads,
) -> None:
    use = reads.weights.setdefault(weight.parameter, WeightUse(weight.parameter, weight.axis))
    use.kinds.append(weight.kind)
    use.outputs.append(op.name)
    use.macs += weight.macs // max(1, batch)
    if weight.kind == "recurrent" and not weight.inputs:
        # States inside the function, which no quantizer reaches.
        use.inputs.append(WeightInput())
    for operand, name in weight.inputs:
        source = graph.operations[name]
        if not source.is_float or source.name in graph.constants:
            use.inputs.append(WeightInput())
            continue
        # A layer of torch reads its first argument, perhaps padded; what is computed within a module, or by a
        # module that calls the function itself, a tap reaches.
        entry = _outside(graph, source, op)
        is_leaf = op.module in leaf_modules and not _is_within(entry, op)
        site = Site(op.module, "input") if is_leaf else Site(op.module, "call", weight.call, index, operand)
        shape = entry.shape if is_leaf else source.shape
        if weight.call in _FOLDING:
            shape = _with_batch(shape, batch)
        root = root_of(graph, source.name)
        use.inputs.append(WeightInput(root, site))
        reads.tensors.append(TensorRead(root, site, shape, weight.kind))


_FOLDING = ("matmul", "einsum", "recurrent")
"""Calls that often read samples and positions as one dimension, or the batch behind another."""


def _with_batch(shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
    return shape if shape[0] == batch else (batch, prod(shape) // max(1, batch))


def _outside(graph: CapturedGraph, source: Operation, layer: Operation) -> Operation:
    """What a layer was called with, above the moves of its own forward."""
    while _is_within(source, layer) and _moves(graph, source) and source.arguments[0]:
        source = graph.operations[source.arguments[0]]
    return source


def _is_within(source: Operation, layer: Operation) -> bool:
    # By call, since a layer may read its own last result; a module inside the layer runs for this call.
    return source.op != "input" and (
        source.call == layer.call or (bool(layer.module) and source.module.startswith(f"{layer.module}."))
    )


def _read_operands(
    graph: CapturedGraph, op: Operation, kind: str, operands: tuple[str, ...], index: int, reads: GraphReads
) -> None:
    if any(name in graph.constants for name in operands):
        return  # a position table, a mask or a float weight of the model's own
    for argument, name in enumerate(operands):
        if kind == "add":
            site = Site(op.module, "add", occurrence=index, argument=argument)
        else:
            site = Site(op.module, "call", kind, index, argument)
        shape = graph.operations[name].shape
        # Hardware profiles know products of activations by one name.
        read_by = "matmul" if kind == "einsum" else kind
        reads.tensors.append(TensorRead(root_of(graph, name), site, shape, read_by))
    if kind == "add":
        a, b = (root_of(graph, name) for name in operands)
        reads.additions.append(Addition(op.module, (a, b)))


def root_of(graph: CapturedGraph, name: str) -> str:
    """The operation that made a tensor's values, above everything that only moves them."""
    while _moves(graph, graph.operations[name]) and graph.operations[name].arguments[0]:
        name = graph.operations[name].arguments[0]
    return name


def producer_of(graph: CapturedGraph, name: str) -> str:
    """The layer that made a tensor, above its normalisation and activation: one kernel does them all."""
    while True:
        op = graph.operations[name]
        is_passed = _moves(graph, op) or op.op in FUSED
        if not (is_passed and op.arguments[0]):
            return name
        name = op.arguments[0]


def _moves(graph: CapturedGraph, op: Operation) -> bool:
    # Adaptive max pooling gives a pair (values, indices), of which only the values are floating point.
    is_part = op.op == GETITEM and graph.operations[op.arguments[0]].op in PASS_THROUGH
    return op.op in PASS_THROUGH or is_part


def _batch_size(graph: CapturedGraph) -> int:
    for op in graph.operations.values():
        if op.op == "input" and op.name not in graph.constants and op.shape:
            return op.shape[0]
    return 1


def read_network(graph: CapturedGraph, reads: GraphReads) -> tuple[NetworkNode, ...]:
    """Layers in graph order, and the operations where results of several meet.

    Inputs that are no floating-point numbers (positions, masks) count where nothing else is read.

    Args:
        graph: the captured graph.
        reads: its weights.
    """
    weights: dict[str, list[str]] = {}
    for use in reads.weights.values():
        for output in use.outputs:
            weights.setdefault(output, []).append(use.parameter)
    nodes: list[NetworkNode] = []
    makers: dict[str, tuple[int, ...]] = {}
    for op in graph.operations.values():
        if op.name in graph.constants:
            continue
        sources = _makers_of(graph, op, makers, nodes)
        meets = op.is_float and len(sources) > 1
        if op.name in weights:
            parameters = tuple(dict.fromkeys(weights[op.name]))
            node = NetworkNode(_layer_name(op.module, parameters), "layer", parameters, sources)
        elif op.op == "input":
            node = NetworkNode(op.name, "input")
        elif meets:
            kind = op.op.rpartition(".")[2].rstrip("_")
            node = NetworkNode(op.module, kind, (), sources)
        else:
            makers[op.name] = sources
            continue
        makers[op.name] = (len(nodes),)
        nodes.append(node)
    return tuple(nodes)


def _makers_of(
    graph: CapturedGraph, op: Operation, makers: dict[str, tuple[int, ...]], nodes: Sequence[NetworkNode]
) -> tuple[int, ...]:
    """Places of the nodes whose results an operation reads."""
    places = sorted({place for source in op.sources for place in makers.get(source, ())})
    values = [place for place in places if _is_value(graph, nodes[place])]
    return tuple(values or places)


def _is_value(graph: CapturedGraph, node: NetworkNode) -> bool:
    return node.kind != "input" or graph.operations[node.name].is_float


def _layer_name(module: str, parameters: Sequence[str]) -> str:
    """The module, or the parameter where the module that reads it does not own it."""
    owner = parameters[0].rpartition(".")[0]
    if not owner:
        return parameters[0]
    return owner if owner == module or owner.startswith(f"{module}.") else parameters[0]
