"""A factor that holds H and R whole, in float64.

G  groups of rows that read different inputs    d  inputs of a row    R  rows of a group
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raysearch.rounding.factors.factor import LEAST_RAISED, MOST_DAMPING, Factor


@dataclass(frozen=True)
class DenseFactor(Factor):
    """See `Factor`.

    Attributes:
        moments_gdd: H as it was taken, in the order of the weight's columns.
        upper_gdd: R, upper triangular.
    """

    moments_gdd: Tensor
    upper_gdd: Tensor

    @property
    def moments_diagonal_gd(self) -> Tensor:
        """See `Factor`."""
        return self.moments_gdd.diagonal(dim1=1, dim2=2)

    @property
    def diagonal_gd(self) -> Tensor:
        """See `Factor`."""
        return self.upper_gdd.diagonal(dim1=1, dim2=2)

    def upper(self, first: int, start: int, stop: int) -> Tensor:
        """See `Factor`."""
        return self.upper_gdd[:, first:start, start:stop]

    def times_moments(self, rows_grd: Tensor) -> Tensor:
        """See `Factor`."""
        return rows_grd @ self.moments_gdd

    def moments_of(self, rows: slice, columns: slice) -> Tensor:
        """See `Factor`."""
        return self.moments_gdd[:, rows, columns]

    def divided(self, rows_grd: Tensor) -> Tensor:
        """See `Factor`."""
        order_gd = self.order_gd
        columns_gdr = torch.take_along_dim(rows_grd.transpose(1, 2), order_gd[:, :, None], 1)
        half_gdr = torch.linalg.solve_triangular(self.upper_gdd, columns_gdr, upper=True)
        solved_gdr = torch.linalg.solve_triangular(self.upper_gdd.transpose(1, 2), half_gdr, upper=False)
        back_gd = torch.argsort(order_gd, dim=1)
        return torch.take_along_dim(solved_gdr, back_gd[:, :, None], 1).transpose(1, 2)


def factorise(moments_gdd: Tensor, damping: float, *, act_order: bool = True) -> DenseFactor:
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
        shifted_gdd = damped_gdd.clone()
        shifted_gdd.diagonal(dim1=1, dim2=2).add_(added_gd)
        ordered_gdd = _reordered(shifted_gdd, order_gd)
        upper_gdd, has_failed_g = _upper_factors(ordered_gdd)
        if not bool(has_failed_g.any()):
            num_dead = int((diagonal_gd <= 0).sum())
            damping = float(share_g1.max())
            return DenseFactor(added_gd, order_gd, damping, num_dead, moments_gdd, upper_gdd)
        is_hopeless_g = has_failed_g & (share_g1[:, 0] >= MOST_DAMPING)
        only_diagonal_gdd = torch.diag_embed(diagonal_gd.clamp_min(0))
        damped_gdd = torch.where(is_hopeless_g[:, None, None], only_diagonal_gdd, damped_gdd)
        raised_g1 = (share_g1 * 10).clamp(LEAST_RAISED, MOST_DAMPING)
        share_g1 = torch.where(has_failed_g[:, None], raised_g1, share_g1)


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
