"""The scales of rows that have several, fitted together to codes that stay as they are.

G  convolution groups    R  rows of a group    d  inputs of a row    K  scale groups along a row    S  scales
B  bundles: rows
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raysearch.rounding.problem import Block, Inputs
from raysearch.rounding.sharing import Sharing

FIT_BYTES = 2**26
"""What is held of the rows that are fitted at once; more rows are done in turn, with the same results."""

RIDGE = 1e-6
"""Added to the diagonal of the normal equations, as a share of it, so that groups may act alike."""


def jointly_fitted_scale(
    codes_grd: Tensor, rows_grd: Tensor, inputs: Inputs, sharing: Sharing, scale_s: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The scales of each row at which its codes miss the weight least, by H; and what they miss.

    With c_k the codes of scale group k and 0 elsewhere,

        error(s) = w H wᵀ − 2 Σ_k s_k·c_k H wᵀ + Σ_kl s_k s_l·c_k H c_lᵀ

    is least where the normal equations hold. A scale that they would make 0 or negative stays, and so do all
    scales of a row that misses no less with the new ones, as they are stored.

    Cost: 2·rows·d² flops and rows·K³/3; memory 8·(5·K² + 4·d) bytes a row, `FIT_BYTES` at most, or one row.

    Args:
        codes_grd: codes less the zero point, float64.
        rows_grd: the weight, float64.
        inputs: H of the rows.
        sharing: which columns share a scale; a row has several.
        scale_s: the scales that the codes were chosen for.

    Returns:
        the best scales, [S]; the errors of the rows at `scale_s`, [B]; their errors at the best scales.
    """
    ids_grk = sharing.places.ids_grk
    start_grk = scale_s[ids_grk]
    best_grk = start_grk.clone()
    before_gr = torch.zeros_like(rows_grd[..., 0])
    after_gr = torch.zeros_like(before_gr)
    num_groups, _, num_columns = rows_grd.shape
    num_scales = start_grk.shape[2]
    # The equations of a row as they are, scaled, factored, and what they are made of; and its columns.
    bytes_a_row = 8 * num_groups * (5 * num_scales**2 + 4 * num_columns)
    chunk = max(1, FIT_BYTES // bytes_a_row)
    for block in inputs.blocks:
        for first in range(block.first, block.last, chunk):
            part = slice(first, min(first + chunk, block.last))
            equations = _equations(codes_grd[:, part], rows_grd[:, part], block, sharing)
            start = start_grk[:, part]
            fitted = sharing.storable(equations.solution(start), ids_grk[:, part])
            before, after = equations.error(start), equations.error(fitted)
            is_better = after < before
            best_grk[:, part] = torch.where(is_better[..., None], fitted, start)
            before_gr[:, part] = before
            after_gr[:, part] = torch.where(is_better, after, before)
    best_s = scale_s.clone()
    best_s[ids_grk] = best_grk
    weights_gr = sharing.weights_gr
    return best_s, (before_gr * weights_gr).flatten(), (after_gr * weights_gr).flatten()


@dataclass(frozen=True)
class _Equations:
    """The error of some rows as a quadratic of their scales."""

    power_gr: Tensor
    overlap_grk: Tensor
    square_grkl: Tensor

    def error(self, scale_grk: Tensor) -> Tensor:
        through_grk = (self.square_grkl @ scale_grk[..., None])[..., 0]
        missed_gr = self.power_gr + ((through_grk - 2 * self.overlap_grk) * scale_grk).sum(2)
        return missed_gr.clamp_min(0)

    def solution(self, start_grk: Tensor) -> Tensor:
        """The scales of least error; those that would not be positive stay."""
        diagonal_grk = self.square_grkl.diagonal(dim1=2, dim2=3)
        # A group whose codes are all 0 says nothing of its scale.
        diagonal_grk = torch.where(diagonal_grk > 0, diagonal_grk, torch.ones_like(diagonal_grk))
        unit_grk = diagonal_grk.rsqrt()
        scaled_grkl = self.square_grkl * unit_grk[..., None] * unit_grk[..., None, :]
        scaled_grkl.diagonal(dim1=2, dim2=3).add_(RIDGE)
        missing_grk = self.overlap_grk - (self.square_grkl @ start_grk[..., None])[..., 0]
        lower_grkl, info_gr = torch.linalg.cholesky_ex(scaled_grkl)
        steps_grk = torch.cholesky_solve((missing_grk * unit_grk)[..., None], lower_grkl)[..., 0] * unit_grk
        fitted_grk = start_grk + steps_grk
        is_usable = torch.isfinite(fitted_grk) & (fitted_grk > 0) & (info_gr == 0)[..., None]
        return torch.where(is_usable, fitted_grk, start_grk)


def _equations(codes_grd: Tensor, rows_grd: Tensor, block: Block, sharing: Sharing) -> _Equations:
    if block.factor is None:
        square_grk = sharing.over_columns(codes_grd.square())
        return _Equations(
            rows_grd.square().sum(2), sharing.over_columns(codes_grd * rows_grd), torch.diag_embed(square_grk)
        )
    through_grd = block.factor.times_moments(rows_grd)
    squares = []
    for span in sharing.places.spans():
        columns_grd = codes_grd[..., span] @ block.factor.moments_of(span, slice(None))
        squares.append(sharing.over_columns(columns_grd * codes_grd))
    power_gr = (through_grd * rows_grd).sum(2)
    return _Equations(power_gr, sharing.over_columns(through_grd * codes_grd), torch.stack(squares, 2))
