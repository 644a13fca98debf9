"""Scales: the one of least squared weight error, and the one that fits given codes best.

G  convolution groups    R  rows of a group    d  inputs of a row    S  scales    C  candidates
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raysearch.quantizer import SMALLEST_SCALE
from raysearch.rounding.problem import Inputs

CLIPS = (1.0, 0.7, 0.5, 0.35, 0.25)
"""Where the search for the least squared error starts, as shares of the given scale."""

NUM_POLISHES = 4
"""Least-squares steps from each start."""


@dataclass(frozen=True)
class Sharing:
    """Which rows share a scale.

    Attributes:
        ids_gr: the scale of each row.
        num_scales: S.
        weights_gr: how much the error of each row counts.
    """

    ids_gr: Tensor
    num_scales: int
    weights_gr: Tensor

    def sums(self, values_cgr: Tensor) -> Tensor:
        """The weighted sum over the rows of each scale, [C, S]."""
        weighted = (values_cgr * self.weights_gr).flatten(1)
        result = weighted.new_zeros((len(weighted), self.num_scales))
        return result.index_add_(1, self.ids_gr.flatten(), weighted)

    def spread(self, values_cs: Tensor) -> Tensor:
        """One value a row, [C, G, R]."""
        return values_cs[:, self.ids_gr]


def as_deployed(scale: Tensor) -> Tensor:
    """Scales as a quantizer holds them: float32, at least the smallest; in float64 for what follows."""
    return scale.float().clamp_min(SMALLEST_SCALE).double()


def least_squares_scale(
    rows_grd: Tensor, sharing: Sharing, start_s: Tensor, low_s: Tensor, high_s: Tensor
) -> Tensor:
    """A scale of least ‖Q(w) − w‖², [S]; never worse than the start.

    From several shares of the start: for codes c of a scale s the best scale is ⟨w, c⟩/⟨c, c⟩, and rounding
    anew to it can only lower the error further.

    Cost: 25 roundings of the weight.

    Args:
        rows_grd: the weight, float64.
        sharing: which rows share a scale.
        start_s: such as the calibrated scale.
        low_s: lowest code less the zero point, of every scale.
        high_s: highest code less the zero point.
    """
    low_gr1, high_gr1 = (sharing.spread(ends[None])[0][..., None] for ends in (low_s, high_s))
    best_s, least_s = start_s, torch.full_like(start_s, torch.inf)
    for clip in CLIPS:
        scale_s = as_deployed(start_s * clip)
        for _ in range(NUM_POLISHES + 1):
            scale_gr1 = sharing.spread(scale_s[None])[0][..., None]
            codes_grd = torch.clamp(torch.round(rows_grd / scale_gr1), low_gr1, high_gr1)
            missed_gr = (codes_grd * scale_gr1 - rows_grd).square().sum(2)
            error_s = sharing.sums(missed_gr[None])[0]
            best_s = torch.where(error_s < least_s, scale_s, best_s)
            least_s = torch.minimum(error_s, least_s)
            overlap_s = sharing.sums((rows_grd * codes_grd).sum(2)[None])[0]
            square_s = sharing.sums(codes_grd.square().sum(2)[None])[0]
            scale_s = as_deployed(_quotient(overlap_s, square_s, scale_s))
    return best_s


def fitted_scale(
    codes_cgrd: Tensor, rows_grd: Tensor, inputs: Inputs, sharing: Sharing, scale_cs: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The scale at which codes c that stay as they are miss the weight least, by H; and what they miss.

        error(s) = w H wᵀ − 2 s·c H wᵀ + s²·c H cᵀ        least at s = c H wᵀ / c H cᵀ

    Args:
        codes_cgrd: codes less the zero point, float64.
        rows_grd: the weight, float64.
        inputs: H of the rows.
        sharing: which rows share a scale.
        scale_cs: the scales that the codes were chosen for; kept where the quotient is not positive.

    Returns:
        the best scales, [C, S]; the errors at `scale_cs`; the errors at the best scales.
    """
    power_s = sharing.sums((inputs.times_moments(rows_grd) * rows_grd).sum(2)[None])[0]
    through_cgrd = inputs.times_moments(codes_cgrd)
    overlap_cs = sharing.sums((through_cgrd * rows_grd).sum(3))
    square_cs = sharing.sums((through_cgrd * codes_cgrd).sum(3))

    def error(candidate_cs: Tensor) -> Tensor:
        missed = power_s - 2 * candidate_cs * overlap_cs + candidate_cs.square() * square_cs
        return missed.clamp_min(0)

    fitted_cs = as_deployed(_quotient(overlap_cs, square_cs, scale_cs))
    before_cs, after_cs = error(scale_cs), error(fitted_cs)
    # A scale in float32 is not quite the best one.
    improves = after_cs < before_cs
    best_cs = torch.where(improves, fitted_cs, scale_cs)
    return best_cs, before_cs, torch.minimum(before_cs, after_cs)


def _quotient(overlap: Tensor, square: Tensor, otherwise: Tensor) -> Tensor:
    fits = (overlap > 0) & (square > 0)
    return torch.where(fits, overlap / torch.where(fits, square, torch.ones_like(square)), otherwise)
