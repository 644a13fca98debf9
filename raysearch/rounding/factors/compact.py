"""A factor of many inputs: H and R share one buffer of float32, and are computed with in float64.

G  groups of rows that read different inputs    d  inputs of a row    R  rows of a group    b  of a part
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from raysearch.rounding.factors.factor import LEAST_RAISED, MOST_DAMPING, Factor

NUM_COLUMNS = 256
"""Columns that are factored, or multiplied with, at once."""

PART_BYTES = 2**26
"""Entries of the buffer that are held in float64 at once."""


@dataclass(frozen=True)
class CompactFactor(Factor):
    """See `Factor`. Memory: 4·d² bytes a group, and parts of `PART_BYTES` or `NUM_COLUMNS` columns.

    Attributes:
        buffer_gdd: in the order of rounding: above and on the diagonal R, below it H.
        kept_diagonal_gd: the diagonal of H, in the order of rounding.
        place_gd: where each column of the weight stands in that order.
    """

    buffer_gdd: Tensor
    kept_diagonal_gd: Tensor
    place_gd: Tensor

    @property
    def moments_diagonal_gd(self) -> Tensor:
        """See `Factor`."""
        return self.kept_diagonal_gd.gather(1, self.place_gd)

    @property
    def diagonal_gd(self) -> Tensor:
        """See `Factor`."""
        return self.buffer_gdd.diagonal(dim1=1, dim2=2).double()

    def upper(self, first: int, start: int, stop: int) -> Tensor:
        """See `Factor`."""
        return self.buffer_gdd[:, first:start, start:stop].double()

    def times_moments(self, rows_grd: Tensor) -> Tensor:
        """See `Factor`. Work: 2·rows·d² flops; memory: twice the rows."""
        result_grd = torch.empty_like(rows_grd)
        for group, order_d in enumerate(self.order_gd):
            ordered_rd = rows_grd[..., group, :, :].index_select(-1, order_d)
            for start, stop in _parts(len(order_d)):
                through_rb = ordered_rd @ self._columns(group, start, stop)
                result_grd[..., group, :, order_d[start:stop]] = through_rb
        return result_grd

    def moments_of(self, rows: slice, columns: slice) -> Tensor:
        """See `Factor`."""
        parts = []
        for group, place_d in enumerate(self.place_gd):
            places, other_places = place_d[rows][:, None], place_d[columns][None]
            below = torch.maximum(places, other_places)
            above = torch.minimum(places, other_places)
            values = self.buffer_gdd[group].take(below * len(place_d) + above).double()
            is_diagonal = places == other_places
            diagonal = self.kept_diagonal_gd[group][places].expand_as(values)
            parts.append(torch.where(is_diagonal, diagonal, values))
        return torch.stack(parts)

    def divided(self, rows_grd: Tensor) -> Tensor:
        """See `Factor`. By substitution, a part of the columns after the other."""
        result_grd = torch.empty_like(rows_grd)
        for group, order_d in enumerate(self.order_gd):
            values_dr = rows_grd[group].index_select(1, order_d).T.contiguous()
            upper_dd = self.buffer_gdd[group]
            for start, stop in reversed(list(_parts(len(order_d)))):
                for span in _spans(stop, len(order_d), stop - start):
                    values_dr[start:stop] -= upper_dd[start:stop, span].double() @ values_dr[span]
                corner_bb = upper_dd[start:stop, start:stop].double()
                values_dr[start:stop] = torch.linalg.solve_triangular(
                    corner_bb, values_dr[start:stop], upper=True
                )
            for start, stop in _parts(len(order_d)):
                for span in _spans(0, start, stop - start):
                    values_dr[start:stop] -= upper_dd[span, start:stop].double().T @ values_dr[span]
                corner_bb = upper_dd[start:stop, start:stop].double().triu()
                values_dr[start:stop] = torch.linalg.solve_triangular(
                    corner_bb.T, values_dr[start:stop], upper=False
                )
            result_grd[group] = values_dr.index_select(0, self.place_gd[group]).T
        return result_grd

    def _columns(self, group: int, start: int, stop: int) -> Tensor:
        """H's columns start … stop−1 in the order of rounding, [d, b]."""
        buffer_dd = self.buffer_gdd[group]
        columns_db = torch.empty(len(buffer_dd), stop - start, dtype=torch.float64, device=buffer_dd.device)
        columns_db[:start] = buffer_dd[start:stop, :start].T
        corner_bb = buffer_dd[start:stop, start:stop].double().tril(-1)
        columns_db[start:stop] = corner_bb + corner_bb.T
        columns_db[start:stop].diagonal().copy_(self.kept_diagonal_gd[group, start:stop])
        columns_db[stop:] = buffer_dd[stop:, start:stop]
        return columns_db


def factorise_compactly(moments_gdd: Tensor, damping: float, *, act_order: bool = True) -> CompactFactor:
    """As `factorise`, in the buffer of the moments themselves, which is taken.

    Error: H is what float32 holds of it. Each entry of R is a sum in float64 rounded to float32 once, so
    R Rᵀ = A + E with |E_ij| ≤ 3·2⁻²⁴·√(A_ii A_jj), A the damped matrix. So ‖E‖ ≤ 3·2⁻²⁴·tr A: less than was
    added where λ is above 3·2⁻²⁴·d, .0026 at 14,336 inputs.

    Cost: d³/3 flops a group in float64; memory: no second matrix.

    Args:
        moments_gdd: H, symmetric, positive semi-definite up to rounding; float32.
        damping: the first λ.
        act_order: False keeps the order of the columns.
    """
    diagonal_gd = moments_gdd.diagonal(dim1=1, dim2=2).double()
    if act_order:
        order_gd = torch.argsort(diagonal_gd, dim=1, descending=True, stable=True)
    else:
        order_gd = torch.arange(diagonal_gd.shape[1], device=diagonal_gd.device).repeat(len(diagonal_gd), 1)
    ordered_gd = diagonal_gd.gather(1, order_gd)
    added_g, shares = [], []
    for matrix_dd, order_d, ordered_d in zip(moments_gdd, order_gd, ordered_gd, strict=True):
        _reorder(matrix_dd, order_d)
        mean = float(ordered_d.mean())
        share = _factorise_group(matrix_dd, ordered_d, mean if mean > 0 else 1.0, damping)
        shares.append(share)
        added_g.append(share * (mean if mean > 0 else 1.0))
    added_gd = torch.tensor(added_g, dtype=torch.float64, device=diagonal_gd.device)[:, None]
    return CompactFactor(
        added_gd=added_gd.expand_as(diagonal_gd),
        order_gd=order_gd,
        damping=max(shares),
        num_dead=int((diagonal_gd <= 0).sum()),
        buffer_gdd=moments_gdd,
        kept_diagonal_gd=ordered_gd,
        place_gd=torch.argsort(order_gd, dim=1),
    )


def _factorise_group(matrix_dd: Tensor, diagonal_d: Tensor, mean: float, damping: float) -> float:
    """Put R above and on the diagonal; the λ that it took."""
    share = damping
    while not _put_upper_factor(matrix_dd, diagonal_d + share * mean):
        if share >= MOST_DAMPING:
            # Only the diagonal is left, which is rounding to nearest.
            _clear_above(matrix_dd)
            matrix_dd.diagonal().copy_((diagonal_d.clamp_min(0) + share * mean).sqrt())
            return share
        _restore_above(matrix_dd)
        share = min(max(share * 10, LEAST_RAISED), MOST_DAMPING)
    return share


def _put_upper_factor(matrix_dd: Tensor, damped_d: Tensor) -> bool:
    """R with R Rᵀ = A over the upper half of A, whose diagonal is given; whether A is positive definite.

    From the last columns to the first: what the columns behind a part have in it is taken off, its corner is
    factored, and the rows above are divided by that.
    """
    num_columns = len(matrix_dd)
    for start, stop in reversed(list(_parts(num_columns))):
        columns_ib = matrix_dd[:stop, start:stop].double()
        columns_ib[start:stop].diagonal().copy_(damped_d[start:stop])
        for span in _spans(stop, num_columns, stop):
            columns_ib -= matrix_dd[:stop, span].double() @ matrix_dd[start:stop, span].double().T
        # Turned round, the upper half is the lower one, which is what is read.
        lower_bb, info = torch.linalg.cholesky_ex(columns_ib[start:stop].flip(0, 1))
        if int(info) or not bool(torch.isfinite(lower_bb).all()):
            return False
        upper_bb = lower_bb.flip(0, 1)
        above_ib = torch.linalg.solve_triangular(upper_bb.T, columns_ib[:start], upper=False, left=False)
        matrix_dd[:start, start:stop] = above_ib
        is_above = torch.ones_like(upper_bb, dtype=torch.bool).triu()
        kept_bb = matrix_dd[start:stop, start:stop]
        kept_bb.copy_(torch.where(is_above, upper_bb.to(matrix_dd.dtype), kept_bb))
    return True


def _reorder(matrix_dd: Tensor, order_d: Tensor) -> None:
    """Rows and columns in another order, in place."""
    for start, stop in _parts(len(order_d)):
        matrix_dd[:, start:stop] = matrix_dd[:, start:stop].index_select(0, order_d)
    for start, stop in _parts(len(order_d)):
        matrix_dd[start:stop] = matrix_dd[start:stop].index_select(1, order_d)


def _restore_above(matrix_dd: Tensor) -> None:
    """The upper half from the lower one."""
    for start, stop in _parts(len(matrix_dd)):
        matrix_dd[:start, start:stop] = matrix_dd[start:stop, :start].T
        corner_bb = matrix_dd[start:stop, start:stop].tril(-1)
        matrix_dd[start:stop, start:stop] = corner_bb + corner_bb.T


def _clear_above(matrix_dd: Tensor) -> None:
    for start, stop in _parts(len(matrix_dd)):
        matrix_dd[:start, start:stop] = 0
        matrix_dd[start:stop, start:stop].tril_(-1)


def _parts(num_columns: int) -> Iterator[tuple[int, int]]:
    for start in range(0, num_columns, NUM_COLUMNS):
        yield start, min(start + NUM_COLUMNS, num_columns)


def _spans(first: int, last: int, other: int) -> Iterator[slice]:
    """First … last−1 in pieces of which `PART_BYTES` hold so many rows."""
    step = max(1, PART_BYTES // (8 * other))
    for start in range(first, last, step):
        yield slice(start, min(start + step, last))
