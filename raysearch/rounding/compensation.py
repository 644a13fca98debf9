"""GPTQ: the codes of a row, column by column, each error made up for by the columns not yet rounded.

G  groups of rows that read different inputs    d  inputs of a row    K  scale groups along a row
M  rows: output channels, each once a scheme and candidate scale
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raysearch.rounding.factors import Factor

SOLVE_BYTES = 2**28
"""Rounding errors that `solve` holds at once; more rows are done in turn, with the same results."""

INNER_BLOCK = 16
"""Columns of a block that are rounded before what is left of them is handed on to the rest of the block."""


@dataclass(frozen=True)
class Grid:
    """The values that each row may take: (code − zero point)·scale.

    Attributes:
        scale_gkm: positive, one a row and scale group.
        low_gkm: lowest code less the zero point, of the same shape or one that broadcasts to it.
        high_gkm: highest code less the zero point.
        group_of_d: the scale group of every column; None where a row has one scale, K = 1.
    """

    scale_gkm: Tensor
    low_gkm: Tensor
    high_gkm: Tensor
    group_of_d: Tensor | None = None

    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scale, lowest and highest code."""
        return self.scale_gkm, self.low_gkm, self.high_gkm

    def nearest(self, weights_gmd: Tensor) -> Tensor:
        """The nearest code of every weight, less the zero point."""
        scale, low, high = (self.of_columns(part) for part in self.tables())
        return torch.clamp(torch.round(weights_gmd / scale), low, high)

    def of_columns(self, part_gkm: Tensor) -> Tensor:
        """One entry of a row's part for every column, or one for all, [G, M, d or 1]."""
        part_gmk = part_gkm.transpose(1, 2)
        return part_gmk if self.group_of_d is None else part_gmk[:, :, self.group_of_d]

    def shares(self, squares_gdm: Tensor) -> Tensor:
        """The sum over the columns of every scale group, [G, K, M]."""
        if self.group_of_d is None:
            return squares_gdm.sum(1, keepdim=True)
        num_groups, _, num_rows = squares_gdm.shape
        shares_gkm = squares_gdm.new_zeros((num_groups, self.scale_gkm.shape[1], num_rows))
        return shares_gkm.index_add_(1, self.group_of_d, squares_gdm)

    def of_candidates(self, num_rows: int) -> list[Grid]:
        """Each candidate's, of so many rows."""
        parts = []
        for part in self.tables():
            every = part.expand(*part.shape[:2], self.scale_gkm.shape[2])
            parts.append(torch.split(every, num_rows, 2))
        return [Grid(scale, low, high, self.group_of_d) for scale, low, high in zip(*parts, strict=True)]

    def narrowed(self, num_rows: int, first: int, last: int) -> Grid:
        """Rows first … last−1 of every candidate, each of `num_rows` rows."""
        parts = []
        for part in self.tables():
            every = part.expand(*part.shape[:2], self.scale_gkm.shape[2])
            apart = every.reshape(*part.shape[:2], -1, num_rows)
            parts.append(apart[..., first:last].flatten(2))
        return Grid(parts[0], parts[1], parts[2], self.group_of_d)


@dataclass(frozen=True)
class Solution:
    """What `solve` chose for the rows of one grid.

    Attributes:
        codes_gmd: codes less the zero point, int16.
        error_gkm: the damped error of a row, in the parts that the columns of each scale group have in it.
    """

    codes_gmd: Tensor
    error_gkm: Tensor


def solve(rows_grd: Tensor, grids: Sequence[Grid], factor: Factor, block_size: int = 128) -> list[Solution]:
    """The codes of all rows by one pass over the columns.

    With δ_i = w_i − q_i of the columns that are done, column j is rounded as if it were

        w_j + Σ_{i<j} δ_i R_ij / R_jj        R Rᵀ = H + diag(added), R upper triangular,

    which is where the columns not yet rounded would best make up for the errors so far. It is the same
    as handing on errors through the Cholesky factor of H⁻¹ (whose inverse R is), without inverting. Then

        (w − q)(H + diag(added))(w − q)ᵀ = Σ_j ((w̃_j − q_j) R_jj)².

    Within `INNER_BLOCK` columns the sums are matrix-vector products; what all columns before them in a block
    contribute, and all before the block, are matrix products. Rows know nothing of each other, so all schemes
    and candidate scales of a weight are rows of one call, and the loop over columns runs once. A column keeps
    the scale of its group in the weight's own order, whenever it is rounded.

    Cost: M·d² flops a group, and 2·d small operations.

    Args:
        rows_grd: the float weights, float64, R rows.
        grids: the levels of M rows each: candidate after candidate of all R.
        factor: of the inputs' second moments.
        block_size: columns in a block.

    Source: Frantar et al., GPTQ, 2022 (arXiv 2210.17323); that it is Babai's nearest plane: arXiv 2507.18553.
    """
    # Column by column, so that a column's rows lie together.
    columns_gdr = _taken(rows_grd.transpose(1, 2).contiguous(), factor.order_gd)
    num_groups, num_columns, num_rows = columns_gdr.shape
    counts = [grid.scale_gkm.shape[2] // num_rows for grid in grids]
    chunk = max(1, SOLVE_BYTES // (8 * num_groups * num_columns * sum(counts)))
    back_gd = torch.argsort(factor.order_gd, dim=1)
    parts: list[list[Solution]] = [[] for _ in grids]
    for start in range(0, num_rows, chunk):
        stop = min(start + chunk, num_rows)
        narrow = [grid.narrowed(num_rows, start, stop) for grid in grids]
        repeated_gdm = columns_gdr[..., start:stop].repeat(1, 1, sum(counts))
        codes_gdm, missed_gdm = _solve_columns(repeated_gdm, narrow, factor, block_size)
        codes_gdm = _taken(codes_gdm, back_gd)
        squares_gdm = missed_gdm.square_()
        if any(grid.group_of_d is not None for grid in grids):
            squares_gdm = _taken(squares_gdm, back_gd)
        sizes = [grid.scale_gkm.shape[2] for grid in narrow]
        split = zip(narrow, torch.split(codes_gdm, sizes, 2), torch.split(squares_gdm, sizes, 2), strict=True)
        for index, (grid, codes, squares) in enumerate(split):
            parts[index].append(Solution(codes.transpose(1, 2), grid.shares(squares)))
    return [_joined(solutions, count) for solutions, count in zip(parts, counts, strict=True)]


def _joined(parts: Sequence[Solution], count: int) -> Solution:
    """Rows that were done in turn, each of so many candidates, as candidate after candidate of all."""
    if len(parts) == 1:
        return parts[0]
    codes, errors = [], []
    for part in parts:
        num_groups, _, num_columns = part.codes_gmd.shape
        codes.append(part.codes_gmd.reshape(num_groups, count, -1, num_columns))
        errors.append(part.error_gkm.reshape(num_groups, part.error_gkm.shape[1], count, -1))
    return Solution(torch.cat(codes, 2).flatten(1, 2), torch.cat(errors, 3).flatten(2))


def _solve_columns(
    columns_gdm: Tensor, grids: Sequence[Grid], factor: Factor, block_size: int
) -> tuple[Tensor, Tensor]:
    """Codes of columns that are in the order of rounding; what each misses takes the place of the columns."""
    num_columns = columns_gdm.shape[1]
    left_gdm = torch.empty_like(columns_gdm)
    codes_gdm = torch.empty(columns_gdm.shape, dtype=torch.int16, device=columns_gdm.device)
    for start in range(0, num_columns, block_size):
        stop = min(start + block_size, num_columns)
        block_gbm = _handed_on(columns_gdm[:, start:stop], factor, left_gdm, 0, start)
        for inner in range(start, stop, INNER_BLOCK):
            end = min(inner + INNER_BLOCK, stop)
            inner_gbm = _handed_on(block_gbm[:, inner - start : end - start], factor, left_gdm, start, inner)
            # Of these columns alone: with scale groups those of all columns would be thrice the weights.
            tables = _ordered_tables(grids, factor.order_gd[:, inner:end])
            for column in range(inner, end):
                place = column - inner
                target_gm = inner_gbm[:, place : place + 1]
                target_gm = _handed_on(target_gm, factor, left_gdm, inner, column)[:, 0]
                scale_gm, low_gm, high_gm = (table[:, min(place, table.shape[1] - 1)] for table in tables)
                value_gm = torch.div(target_gm, scale_gm).round_().clamp_(low_gm, high_gm)
                codes_gdm[:, column] = value_gm
                value_gm.mul_(scale_gm)
                torch.sub(columns_gdm[:, column], value_gm, out=left_gdm[:, column])
                torch.sub(target_gm, value_gm, out=columns_gdm[:, column])
    return codes_gdm, columns_gdm.mul_(factor.diagonal_gd[..., None])


def _handed_on(block_gbm: Tensor, factor: Factor, left_gdm: Tensor, first: int, start: int) -> Tensor:
    """Columns from `start` on, with what is left of columns first … start−1 handed on to them."""
    if first == start:
        return block_gbm
    stop = start + block_gbm.shape[1]
    shares_gib = factor.upper(first, start, stop) / factor.diagonal_gd[:, None, start:stop]
    return torch.baddbmm(block_gbm, shares_gib.mT, left_gdm[:, first:start])


def _ordered_tables(grids: Sequence[Grid], order_gd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, lowest and highest code of all rows for columns in the order of rounding, [G, b or 1, M]."""
    tables = []
    for parts in zip(*(grid.tables() for grid in grids), strict=True):
        expanded = [_of_rows(part, grid) for part, grid in zip(parts, grids, strict=True)]
        if any(part.shape[1] > 1 for part in expanded):
            groups = [grid.group_of_d for grid in grids]
            expanded = [
                _in_order(part, group_of_d, order_gd)
                for part, group_of_d in zip(expanded, groups, strict=True)
            ]
        tables.append(expanded[0] if len(expanded) == 1 else torch.cat(expanded, 2))
    return tables[0], tables[1], tables[2]


def _of_rows(part: Tensor, grid: Grid) -> Tensor:
    """One entry a row."""
    return part.expand(*part.shape[:2], grid.scale_gkm.shape[2])


def _in_order(part_gkm: Tensor, group_of_d: Tensor | None, order_gd: Tensor) -> Tensor:
    """One entry a column in the order of rounding."""
    if group_of_d is None or part_gkm.shape[1] == 1:
        return part_gkm.expand(len(order_gd), order_gd.shape[1], part_gkm.shape[2])
    return _taken(part_gkm.expand(len(order_gd), -1, -1), group_of_d[order_gd])


def _taken(values_gdm: Tensor, order_gd: Tensor) -> Tensor:
    """Columns in another order; they lie in dimension 1."""
    if len(values_gdm) == 1:
        return values_gdm.index_select(1, order_gd[0])
    return torch.take_along_dim(values_gdm, order_gd[..., None], 1)
