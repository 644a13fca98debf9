"""GPTQ: the codes of a row, column by column, each error made up for by the columns not yet rounded.

G  groups of rows that read different inputs    d  inputs of a row    K  scale groups along a row
M  rows: output channels, each once a scheme and candidate scale
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_DAMPING = 1.0
"""Where the damping stops being raised."""

LEAST_RAISED = 1e-6
"""What a damping of 0 is raised to first."""

SOLVE_BYTES = 2**28
"""Rounding errors that `solve` holds at once; more rows are done in turn, with the same results."""


@dataclass(frozen=True)
class Factor:
    """The second moments of a row's inputs, damped, reordered and factored once for all its schemes.

    Attributes:
        moments_gdd: H as it was taken, in the order of the weight's columns.
        added_gd: what was added to the diagonal, in that order.
        order_gd: the column that is rounded 1st, 2nd, …
        upper_gdd: R, upper triangular, with R Rᵀ = H + diag(added), both in the order of rounding.
        damping: λ, as a share of the mean of the diagonal.
        num_dead: inputs that were never other than 0.
    """

    moments_gdd: Tensor
    added_gd: Tensor
    order_gd: Tensor
    upper_gdd: Tensor
    damping: float
    num_dead: int


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
        scale, low, high = (self.of_columns(part) for part in (self.scale_gkm, self.low_gkm, self.high_gkm))
        return torch.clamp(torch.round(weights_gmd / scale), low, high)

    def of_columns(self, part_gkm: Tensor) -> Tensor:
        """One entry of a row's part for every column, or one for all, [G, M, d or 1]."""
        part_gmk = part_gkm.transpose(1, 2)
        return part_gmk if self.group_of_d is None else part_gmk[:, :, self.group_of_d]


def factorise(moments_gdd: Tensor, damping: float, *, act_order: bool = True) -> Factor:
    """Damp, reorder and factor H.

    λ·mean(diag H) is added to the diagonal of each group; where the factorisation fails, that group's λ grows
    tenfold up to 1, and then only its diagonal is left, which is rounding to nearest. An input that was
    always 0 has nothing but that λ: no error is handed on to it or from it, so its weights round to nearest.
    Columns are rounded in the order of falling diag(H), ties in their own order: the largest inputs first,
    while there is most to make up with.

    Cost: d³/3 flops a group, and 3 matrices of 8·d² bytes.

    Args:
        moments_gdd: H, symmetric, positive semi-definite up to rounding; float64.
        damping: the first λ.
        act_order: False keeps the order of the columns.
    """
    diagonal_gd = moments_gdd.diagonal(dim1=1, dim2=2)
    mean_g1 = diagonal_gd.mean(1, keepdim=True)
    mean_g1 = torch.where(mean_g1 > 0, mean_g1, torch.ones_like(mean_g1))
    if act_order:
        order_gd = torch.argsort(diagonal_gd, dim=1, descending=True, stable=True)
    else:
        order_gd = torch.arange(diagonal_gd.shape[1], device=diagonal_gd.device).repeat(len(diagonal_gd), 1)
    share_g1 = torch.full_like(mean_g1, damping)
    damped_gdd = moments_gdd
    while True:
        added_gd = (share_g1 * mean_g1).expand_as(diagonal_gd)
        ordered_gdd = _reordered(damped_gdd + torch.diag_embed(added_gd), order_gd)
        upper_gdd, has_failed_g = _upper_factors(ordered_gdd)
        if not bool(has_failed_g.any()):
            num_dead = int((diagonal_gd <= 0).sum())
            return Factor(moments_gdd, added_gd, order_gd, upper_gdd, float(share_g1.max()), num_dead)
        is_hopeless_g = has_failed_g & (share_g1[:, 0] >= MOST_DAMPING)
        only_diagonal_gdd = torch.diag_embed(diagonal_gd.clamp_min(0))
        damped_gdd = torch.where(is_hopeless_g[:, None, None], only_diagonal_gdd, damped_gdd)
        raised_g1 = (share_g1 * 10).clamp(LEAST_RAISED, MOST_DAMPING)
        share_g1 = torch.where(has_failed_g[:, None], raised_g1, share_g1)


def solve(rows_grd: Tensor, grid: Grid, factor: Factor, block_size: int = 128) -> tuple[Tensor, Tensor]:
    """The codes of all rows by one pass over the columns.

    With δ_i = w_i − q_i of the columns that are done, column j is rounded as if it were

        w_j + Σ_{i<j} δ_i R_ij / R_jj        R Rᵀ = H + diag(added), R upper triangular,

    which is where the columns not yet rounded would best make up for the errors so far. It is the same
    as handing on errors through the Cholesky factor of H⁻¹ (whose inverse R is), without inverting. Then

        (w − q)(H + diag(added))(w − q)ᵀ = Σ_j ((w̃_j − q_j) R_jj)².

    Within a block of columns the sums are matrix-vector products; what all columns before a block
    contribute is one matrix product. Rows know nothing of each other, so all schemes and candidate scales
    of a weight are rows of one call, and the loop over columns runs once.

    Cost: M·d² flops a group, and 2·d small operations.

    Args:
        rows_grd: the float weights, float64, R rows.
        grid: the levels of M rows: candidate after candidate of all R.
        factor: of the inputs' second moments.
        block_size: columns in a block.

    Returns:
        codes less the zero point, [G, M, d], int16; the damped error above, [G, M].

    Source: Frantar et al., GPTQ, 2022 (arXiv 2210.17323); that it is Babai's nearest plane: arXiv 2507.18553.
    """
    # Column by column, so that a column's rows lie together.
    columns_gdr = _taken(rows_grd.transpose(1, 2).contiguous(), factor.order_gd)
    num_groups, num_columns, num_rows = columns_gdr.shape
    num_candidates = grid.scale_gkm.shape[2] // num_rows
    chunk = max(1, SOLVE_BYTES // (8 * num_groups * num_columns * num_candidates))
    apart = (num_groups, -1, num_candidates, num_rows)
    tables = [part.expand_as(grid.scale_gkm).reshape(apart) for part in grid.tables()]
    back_gd = torch.argsort(factor.order_gd, dim=1)
    codes, errors = [], []
    for start in range(0, num_rows, chunk):
        part_gdr = columns_gdr[..., start : start + chunk]
        parts = [table[..., start : start + chunk].flatten(2) for table in tables]
        part_grid = Grid(parts[0], parts[1], parts[2], grid.group_of_d)
        codes_gdm, error_gm = _solve_columns(
            part_gdr.repeat(1, 1, num_candidates), part_grid, factor, block_size
        )
        codes.append(_taken(codes_gdm, back_gd).reshape(num_groups, num_columns, num_candidates, -1))
        errors.append(error_gm.reshape(num_groups, num_candidates, -1))
    return torch.cat(codes, 3).flatten(2).transpose(1, 2), torch.cat(errors, 2).flatten(1)


def _solve_columns(columns_gdm: Tensor, grid: Grid, factor: Factor, block_size: int) -> tuple[Tensor, Tensor]:
    """Codes and errors of columns that are in the order of rounding."""
    num_groups, num_columns, num_rows = columns_gdm.shape
    upper_gdd = factor.upper_gdd
    scale_gdm, low_gdm, high_gdm = _ordered_grid(grid, factor.order_gd)
    diagonal_gd = upper_gdd.diagonal(dim1=1, dim2=2)
    shares_gdd = upper_gdd / diagonal_gd[:, None, :]
    left_gdm = torch.empty_like(columns_gdm)
    codes_gdm = torch.empty(columns_gdm.shape, dtype=torch.int16, device=columns_gdm.device)
    error_gm = columns_gdm.new_zeros((num_groups, num_rows))
    for start in range(0, num_columns, block_size):
        stop = min(start + block_size, num_columns)
        block_gbm = columns_gdm[:, start:stop]
        if start:
            earlier_gbi = shares_gdd[:, :start, start:stop].transpose(1, 2)
            block_gbm = torch.baddbmm(block_gbm, earlier_gbi, left_gdm[:, :start])
        for column in range(start, stop):
            target_gm = block_gbm[:, column - start]
            if column > start:
                handed_g1i = shares_gdd[:, None, start:column, column]
                target_gm = target_gm + torch.bmm(handed_g1i, left_gdm[:, start:column])[:, 0]
            at = column if scale_gdm.shape[1] > 1 else 0
            scale_gm = scale_gdm[:, at]
            low_gm, high_gm = low_gdm[:, at], high_gdm[:, at]
            code_gm = torch.clamp(torch.round(target_gm / scale_gm), low_gm, high_gm)
            value_gm = code_gm * scale_gm
            codes_gdm[:, column] = code_gm
            left_gdm[:, column] = columns_gdm[:, column] - value_gm
            miss_gm = (target_gm - value_gm) * diagonal_gd[:, column, None]
            error_gm.addcmul_(miss_gm, miss_gm)
    return codes_gdm, error_gm


def _ordered_grid(grid: Grid, order_gd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, lowest and highest code of the columns in the order of rounding, [G, d or 1, M]."""
    if grid.group_of_d is None:
        return grid.tables()
    groups_gd = grid.group_of_d[order_gd]
    scale, low, high = (_taken(part, groups_gd) for part in grid.tables())
    return scale, low, high


def _taken(values_gdm: Tensor, order_gd: Tensor) -> Tensor:
    """Columns in another order; they lie in dimension 1."""
    if len(values_gdm) == 1:
        return values_gdm.index_select(1, order_gd[0])
    return torch.take_along_dim(values_gdm, order_gd[..., None], 1)


def _reordered(matrix_gdd: Tensor, order_gd: Tensor) -> Tensor:
    rows = torch.take_along_dim(matrix_gdd, order_gd[:, :, None], 1)
    return torch.take_along_dim(rows, order_gd[:, None, :], 2)


def _upper_factors(matrix_gdd: Tensor) -> tuple[Tensor, Tensor]:
    """R, upper triangular, with R Rᵀ the matrix; and where that failed, since it is not positive definite.

    With J that turns the order round, J A J = L Lᵀ gives A = (J L J)(J L J)ᵀ, and J L J is upper triangular.
    """
    lower_gdd, info_g = torch.linalg.cholesky_ex(matrix_gdd.flip(1, 2))
    has_failed_g = (info_g != 0) | ~torch.isfinite(lower_gdd).all(2).all(1)
    return lower_gdd.flip(1, 2), has_failed_g
