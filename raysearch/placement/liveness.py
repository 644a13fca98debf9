"""Which tensors a running model keeps, and from which step to which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from math import prod

from raysearch.hooks.functions import ATEN_CALLS
from raysearch.placement.capture import CapturedGraph, Operation
from raysearch.placement.graph import FUSED, PASS_THROUGH, GraphReads, root_of
from raysearch.placement.weight_reads import CONVOLUTIONS, EINSUM, LINEAR, SLICES, TRANSPOSED
from raysearch.records import LiveTensor, QuantizationPoint

VIEWS = frozenset(
    {
        "aten.flatten", "aten.view", "aten.reshape", "aten._unsafe_view", "aten.unflatten", "aten.expand",
        "aten.transpose", "aten.permute", "aten.t", "aten.squeeze", "aten.unsqueeze", "aten.dropout",
        "aten.feature_dropout", "aten.alias", "aten.detach", "aten.contiguous", "aten.to",
        "aten.lift_fresh_copy", "aten.select", *SLICES,
    }
)  # fmt: skip
"""Operations whose result shares the storage of what they read, or needs none."""

_READS_CODES = frozenset(
    {*CONVOLUTIONS, *TRANSPOSED, LINEAR, EINSUM, *ATEN_CALLS, *PASS_THROUGH, *SLICES, "aten.cat"}
)


def live_tensors(
    graph: CapturedGraph, reads: GraphReads, floating: Set[str], points: Mapping[str, QuantizationPoint]
) -> tuple[LiveTensor, ...]:
    """Every floating-point tensor of the graph with its own storage, in the order of the steps.

    A view shares its source's storage. Normalisation, activation functions and in-place operations work in
    it too, where nothing else reads their source. A tensor is kept at its quantizer's width when only
    operations that take codes read it; inputs are kept from the first step, and outputs to the last.

    Args:
        graph: the captured graph.
        reads: where quantizers act.
        floating: roots of tensors that a quantizable operation reads without a quantizer.
        points: the points of the setup.
    """
    steps = {name: step for step, name in enumerate(graph.operations)}
    readers: dict[str, list[str]] = {name: [] for name in graph.operations}
    for op in graph.operations.values():
        for source in op.sources:
            readers[source].append(op.name)
    # Name of a tensor → name of the operation that made its storage.
    storages: dict[str, str] = {}
    for op in graph.operations.values():
        if op.name not in graph.constants:
            storages[op.name] = _storage(graph, op, readers, storages)
    serving = _points_by_root(reads, points)
    batch = next((op.shape[0] for op in _inputs(graph) if op.shape), 1)
    members: dict[str, list[str]] = {}
    for name, storage in storages.items():
        members.setdefault(storage, []).append(name)
    tensors = []
    for storage, names in members.items():
        if not any(graph.operations[name].is_float for name in names):
            continue
        used = [steps[reader] for name in names for reader in readers[name]]
        is_output = any(not readers[name] for name in names)
        last = len(steps) - 1 if is_output else max(used)
        first = 0 if graph.operations[storage].op == "input" else steps[storage]
        size = max(prod(graph.operations[n].shape) for n in names if graph.operations[n].is_float)
        point = _width_of(graph, names, readers, serving, floating)
        tensors.append(LiveTensor(storage, size // max(1, batch), point, first, last))
    return tuple(sorted(tensors, key=lambda tensor: tensor.first))


def _inputs(graph: CapturedGraph) -> Iterable[Operation]:
    return (op for op in graph.operations.values() if op.op == "input" and op.name not in graph.constants)


def _storage(
    graph: CapturedGraph, op: Operation, readers: Mapping[str, list[str]], storages: Mapping[str, str]
) -> str:
    """Name of the operation whose storage a result lies in."""
    source = op.arguments[0] if op.arguments else ""
    if source not in storages:
        return op.name
    if op.op in VIEWS or op.op.endswith("_"):
        return storages[source]
    same = prod(graph.operations[source].shape) == prod(op.shape)
    return storages[source] if op.op in FUSED and same and readers[source] == [op.name] else op.name


def _points_by_root(reads: GraphReads, points: Mapping[str, QuantizationPoint]) -> dict[str, str]:
    at_site = {
        site: name for name, point in points.items() if point.kind == "activation" for site in point.sites
    }
    serving = {read.root: at_site[read.site] for read in reads.tensors if read.site in at_site}
    for concatenation, parts in reversed(reads.concatenations):
        if concatenation in serving:
            for part in parts:
                serving.setdefault(part, serving[concatenation])
    return serving


def _width_of(
    graph: CapturedGraph,
    names: Iterable[str],
    readers: Mapping[str, list[str]],
    serving: Mapping[str, str],
    floating: Set[str],
) -> str:
    """The point at whose width a storage is kept, "" for float32."""
    inside = set(names)
    # What is read in the end: normalisation and activation inside the storage only lead there.
    ends = [n for n in inside if not readers[n] or any(r not in inside for r in readers[n])]
    widths = set()
    for name in ends:
        outside = [graph.operations[r] for r in readers[name] if r not in inside]
        root = root_of(graph, name)
        reads_codes = outside and all(op.op in _READS_CODES for op in outside)
        is_coded = reads_codes and root not in floating
        widths.add(serving.get(root, "") if is_coded else "")
    return widths.pop() if len(widths) == 1 else ""
