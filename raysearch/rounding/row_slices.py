"""Rows of a weight that are rounded by themselves: how a weight of many inputs is cut, and put together.

G  groups of rows that read different inputs    d  inputs of a row
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from raysearch.records import QuantizationPoint
from raysearch.records.granularity import Granularity
from raysearch.records.rounding import RoundedWeight
from raysearch.records.scheme import Scheme
from raysearch.rounding.problem import Problem, Target, layout_of
from raysearch.rounding.second_moments import Moment, Reader, dtype_of_moments

_Entry = TypeVar("_Entry", bound=np.generic)

ROW_BYTES = 2**26
"""Rows of a unit, as float64, where a weight of many inputs is cut."""

TABLE_BYTES = 2**23
"""The same of a table of an embedding, whose rows need no factor: 2,730 rows of 384 inputs."""

PIECE_BYTES = 2**23
"""Rows that are rounded at once, as float64: what is held meanwhile is some ten times as much."""

TABLE_INPUTS = 384
"""Inputs of a layer whose rows take as long as those of a table, where scales alone are searched."""


@dataclass(frozen=True)
class RowSlice:
    """Rows of a weight that are rounded in one unit.

    Attributes:
        name: the weight.
        axis: its dimension of rows.
        first: the first of them.
        last: the one behind the last; None: all rows.
        is_divisible: whether each row can be rounded without the others.
    """

    name: str
    axis: int = 0
    first: int = 0
    last: int | None = None
    is_divisible: bool = False

    def of(self, problem: Problem) -> Problem:
        """The part of a weight's problem."""
        if self.last is None:
            return problem
        shape = problem.point.shape
        targets = tuple(self._target(target, shape) for target in problem.targets)
        inputs = problem.inputs
        return replace(
            problem,
            point=self._point(problem.point),
            weight=problem.weight.narrow(self.axis, self.first, self.last - self.first),
            targets=targets,
            inputs=None if inputs is None else inputs.of_rows(self.first, self.last),
        )

    def num_products(self, point: QuantizationPoint, parts: Sequence[tuple[Reader, Moment]]) -> int:
        """Rows times d² and groups: what rounding them once costs, up to a factor."""
        num_weights = point.num_elements
        if self.last is not None:
            num_weights = num_weights // point.shape[self.axis] * (self.last - self.first)
        matrices = [moment for reader, moment in parts if reader.kind != "embedding"]
        return num_weights * max((moment.num_inputs for moment in matrices), default=TABLE_INPUTS)

    def _point(self, point: QuantizationPoint) -> QuantizationPoint:
        shape = list(point.shape)
        shape[self.axis] = (self.last or 0) - self.first
        return replace(point, shape=tuple(shape))

    def _target(self, target: Target, shape: Sequence[int]) -> Target:
        granularity, start = target.point.granularity, target.start
        rows = slice(self.first, self.last)
        cut = start.with_scales(lambda array: _cut(array, granularity, shape, self.axis, rows))
        return replace(target, point=self._point(target.point), start=cut)


def cut_into_units(
    points: Sequence[QuantizationPoint],
    targets: Mapping[str, tuple[Target, ...]],
    parts: Sequence[tuple[Reader, Moment]],
) -> list[tuple[RowSlice, ...]]:
    """What of weights that read the same is rounded together: all, or of many inputs some of the rows.

    Every unit factors H anew, d³/3 flops, where rounding a row at C candidates takes 2·C·d². So a unit has
    rows of `ROW_BYTES`, 585 of 14,336 inputs: with the 60 candidates of four schemes a factor is 7 % of its
    work, and what it holds does not grow with the weight. It depends on nothing but the shapes, so results
    are those of any number of workers. Weights below `FLOAT32_FROM` inputs are left whole, and so is one
    whose rows share scales or are grouped. A table that embeddings alone look up in is cut whatever its
    inputs are: the words of a language are many, and the search of their scales is most of the work of a
    small net.

    Args:
        points: the weights.
        targets: quantizer id → its schemes.
        parts: what each of them reads.
    """
    units: list[list[RowSlice]] = [[]]
    num_rows = 0
    for point in points:
        axis = _axis_of_rows(point, targets[point.id], parts)
        rows = 1 if axis is None else point.shape[axis]
        num_inputs = point.num_elements // rows
        is_table = all(reader.kind == "embedding" for reader, _ in parts)
        if axis is None or (dtype_of_moments(num_inputs) == torch.float64 and not is_table):
            units[-1].append(RowSlice(point.id, axis or 0, is_divisible=axis is not None))
            continue
        most = max(1, (TABLE_BYTES if is_table else ROW_BYTES) // (8 * num_inputs))
        count = -(-rows // most)
        for first, last in pairwise(rows * index // count for index in range(count + 1)):
            if units[-1] and (num_rows + last - first > most or units[-1][-1].name == point.id):
                units.append([])
                num_rows = 0
            num_rows += last - first
            end = last if count > 1 else None
            units[-1].append(RowSlice(point.id, axis, first, end, is_divisible=True))
    return [tuple(unit) for unit in units]


def round_in_pieces(
    rows: RowSlice, problem: Problem, round_rows: Callable[[Problem], dict[Scheme, RoundedWeight]]
) -> dict[Scheme, RoundedWeight]:
    """Every scheme of some rows, `PIECE_BYTES` of them at a time, which share their inputs' factor.

    No row depends on another, so the codes are those of all rows at once.

    Args:
        rows: which rows they are.
        problem: the rows, in the order of their inputs' blocks.
        round_rows: rounds a part of it.
    """
    num_rows = problem.point.shape[rows.axis]
    count = min(num_rows, -(-8 * problem.point.num_elements // PIECE_BYTES))
    if count < 2 or not rows.is_divisible:
        return round_rows(problem)
    parts: dict[Scheme, list[tuple[RowSlice, RoundedWeight]]] = {}
    for first, last in pairwise(num_rows * index // count for index in range(count + 1)):
        piece = RowSlice(rows.name, rows.axis, first, last)
        for scheme, weight in round_rows(piece.of(problem)).items():
            parts.setdefault(scheme, []).append((piece, weight))
    together = {scheme: put_together(pieces) for scheme, pieces in parts.items()}
    if problem.inputs is None:
        return together
    # Rows of other blocks read other inputs.
    mean_moment = problem.inputs.mean_moment() / problem.num_samples
    return {scheme: replace(weight, mean_moment=mean_moment) for scheme, weight in together.items()}


def put_together(parts: Sequence[tuple[RowSlice, RoundedWeight]]) -> RoundedWeight:
    """A weight at one scheme of all its slices."""
    parts = sorted(parts, key=lambda part: part[0].first)
    first_slice, first = parts[0]
    if first_slice.last is None:
        return first
    axis = first_slice.axis
    weights = [weight for _, weight in parts]
    codes = np.concatenate([weight.codes for weight in weights], axis)
    of_scales: dict[str, list[npt.NDArray[Any]]] = {}
    for weight in weights:
        shape = weight.granularity.scale_shape(weight.codes.shape)
        for name, array in weight.arrays_of_scales().items():
            of_scales.setdefault(name, []).append(array.reshape(shape))
    arrays: dict[str, Any] = {
        name: np.concatenate(values, axis).reshape(-1) for name, values in of_scales.items()
    }
    return replace(
        first,
        **arrays,
        codes=codes,
        error_nearest=sum(weight.error_nearest for weight in weights),
        error=sum(weight.error for weight in weights),
    )


def rows_by_block(problem: Problem) -> Problem:
    """A weight's problem with its rows in the order of the inputs' blocks."""
    order_r = None if problem.inputs is None else problem.inputs.order_r
    if order_r is None:
        return problem
    targets = []
    for target in problem.targets:
        moved = partial(
            _moved,
            granularity=target.point.granularity,
            shape=problem.point.shape,
            order=order_r.cpu().numpy(),
        )
        targets.append(replace(target, start=target.start.with_scales(moved)))
    return replace(problem, weight=problem.weight[order_r], targets=tuple(targets))


def as_they_lie(weight: RoundedWeight, order_r: torch.Tensor | None) -> RoundedWeight:
    """A rounded weight whose rows were in some order, with its rows as they lie."""
    if order_r is None:
        return weight
    back = torch.argsort(order_r).cpu().numpy()
    shape = weight.codes.shape
    arrays: dict[str, Any] = {
        name: _moved(array, weight.granularity, shape, back)
        for name, array in weight.arrays_of_scales().items()
    }
    return replace(weight, codes=weight.codes[back], **arrays)


def _moved(
    array: npt.NDArray[_Entry], granularity: Granularity, shape: Sequence[int], order: npt.NDArray[np.int64]
) -> npt.NDArray[_Entry]:
    """One entry a scale, of rows in another order; the same where rows share them."""
    sizes = granularity.scale_shape(shape)
    return array if sizes[0] == 1 else array.reshape(sizes)[order].reshape(-1)


def _axis_of_rows(
    point: QuantizationPoint, targets: Sequence[Target], parts: Sequence[tuple[Reader, Moment]]
) -> int | None:
    """The dimension that a weight can be cut along; None where its rows hang together."""
    # The rows of a table lie as those of a linear layer do, which may be tied to it.
    layouts = {layout_of(reader) for reader, _ in parts if reader.kind != "embedding"}
    layouts = layouts or {layout_of(reader) for reader, _ in parts}
    if len(layouts) != 1 or len(point.shape) < 2:
        return None
    layout = layouts.pop()
    axis = 1 if layout.is_transposed else 0
    axes = {target.point.granularity.normalized(point.shape).axis for target in targets}
    if layout.groups > 1 or layout.is_batched or axes != {axis}:
        return None
    return axis


def _cut(
    array: npt.NDArray[_Entry], granularity: Granularity, shape: Sequence[int], axis: int, rows: slice
) -> npt.NDArray[_Entry]:
    """The entries of some rows' scales."""
    sizes = granularity.scale_shape(shape)
    places: list[slice] = [slice(None)] * len(sizes)
    places[axis] = rows
    return array.reshape(sizes)[tuple(places)].reshape(-1)
