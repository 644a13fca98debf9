"""Costs as integers over the options: a part for each group alone, and tables for pairs of groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from raysearch.records import FileSize, LiveTensor, QuantizationPoint, tensor_bytes
from raysearch.records.latency import PICOSECONDS
from raysearch.records.setup import FLOAT_BITS

if TYPE_CHECKING:
    from raysearch.search.problem.space import OptionSpace

IntArray = npt.NDArray[np.int64]
PairCost = Callable[[QuantizationPoint, int, int], int]
"""What a weight costs at (its width, the width of its input)."""


@dataclass(frozen=True)
class Form:
    """use(x) = constant + Σ_l linear[l, x_l] + Σ_e tables[e, x_i, x_j], (i, j) = edges[e]; all int64.

    Attributes:
        linear: [L, B].
        edges: [E, 2], row of a weight group and row of the activation group that feeds it.
        tables: [E, B, B].
        divisor: cost = use / divisor, for those kinds that are a quotient with a constant.
    """

    linear: IntArray
    edges: IntArray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    tables: IntArray = field(default_factory=lambda: np.zeros((0, 1, 1), dtype=np.int64))
    constant: int = 0
    divisor: int = 1


def forms_of(space: OptionSpace, kind: str) -> list[Form]:
    """The forms whose greatest is the cost; only `activation_memory` has several, one a set of live tensors.

    Of `effective` it is the form of Σ MACs·max(w, a), which the ratio falls with; of `latency` picoseconds.
    """
    if kind == "activation_memory":
        return _memory_forms(space)
    if kind in ("avg_bits", "act_bits", "size"):
        return [_separable(space, kind)]
    if kind == "bops":
        return [_coupled(space, lambda point, w, a: point.macs * w * a)]
    if kind == "effective":
        return [_coupled(space, lambda point, w, a: point.macs * max(w, a))]
    profile = space.setup.latency
    assert profile is not None
    seconds = _coupled(space, lambda point, w, a: profile.picoseconds(point.id, w, a))
    other = round(profile.other_seconds * PICOSECONDS)
    return [Form(seconds.linear, seconds.edges, seconds.tables, other, PICOSECONDS)]


def broken_pairs_form(space: OptionSpace) -> Form:
    """The number of weights whose width does not go with that of their input."""
    pairs = space.setup.pairs
    return _coupled(
        space, lambda p, w, a: int(p.id in pairs and a != FLOAT_BITS and (w, a) not in pairs[p.id])
    )


def _separable(space: OptionSpace, kind: str) -> Form:
    setup, linear, total = space.setup, np.zeros_like(space.widths), 0
    file = FileSize(setup)
    wanted = "activation" if kind == "act_bits" else "weight"
    for row, name in enumerate(space.groups):
        points = [setup.points[p] for p in setup.groups[name].points]
        if points[0].kind != wanted:
            continue
        elements = sum(point.num_elements for point in points)
        total += elements
        for column, bits in enumerate(setup.groups[name].bit_widths):
            size = sum(file.part(point, bits) for point in points) if kind == "size" else elements * bits
            linear[row, column] = size
    if kind == "size":
        return Form(linear, constant=file.constant)
    return Form(linear, divisor=max(total, 1))


def _memory_forms(space: OptionSpace) -> list[Form]:
    row_of = {p: row for row, name in enumerate(space.groups) for p in space.setup.groups[name].points}
    return [_live_form(space, live, row_of) for live in space.live_sets]


def _live_form(space: OptionSpace, live: tuple[LiveTensor, ...], row_of: dict[str, int]) -> Form:
    linear, constant = np.zeros_like(space.widths), 0
    for tensor in live:
        if tensor.point not in row_of:
            constant += tensor_bytes(tensor, FLOAT_BITS)
            continue
        row = row_of[tensor.point]
        for column, bits in enumerate(space.widths[row, : int(space.valid[row].sum())].tolist()):
            linear[row, column] += tensor_bytes(tensor, bits)
    return Form(linear, constant=constant)


def _coupled(space: OptionSpace, cost: PairCost) -> Form:
    setup, linear, size = space.setup, np.zeros_like(space.widths), space.widths.shape[1]
    row_of = {p: row for row, name in enumerate(space.groups) for p in setup.groups[name].points}
    counts = space.valid.sum(axis=1).tolist()
    widths = [space.widths[row, :count].tolist() for row, count in enumerate(counts)]
    tables: dict[tuple[int, int], IntArray] = {}
    for point in setup.of_kind("weight").values():
        row = row_of[point.id]
        if point.input_point not in row_of:
            linear[row, : counts[row]] += [cost(point, w, FLOAT_BITS) for w in widths[row]]
            continue
        fed = row_of[point.input_point]
        table = tables.setdefault((row, fed), np.zeros((size, size), dtype=np.int64))
        table[: counts[row], : counts[fed]] += np.array(
            [[cost(point, w, a) for a in widths[fed]] for w in widths[row]], dtype=np.int64
        )
    edges = []
    for (row, fed), table in tables.items():
        used = table[: counts[row], : counts[fed]]
        # What depends on one of the two widths alone is no coupling.
        if (used == used[:, :1]).all():
            linear[row, : counts[row]] += used[:, 0]
        elif (used == used[:1]).all():
            linear[fed, : counts[fed]] += used[0]
        else:
            edges.append((row, fed))
    if not edges:
        return Form(linear)
    return Form(linear, np.array(edges, dtype=np.int64), np.stack([tables[edge] for edge in edges]))
