"""Scales: the one of least squared weight error, and the one that fits given codes best.

G  convolution groups    R  rows of a group    d  inputs of a row    K  scale groups along a row    S  scales
"""

from __future__ import annotations

import torch
from torch import Tensor

from raysearch.rounding.problem import Inputs
from raysearch.rounding.sharing import Sharing

CLIPS = (1.0, 0.7, 0.5, 0.35, 0.25)
"""Where the search for the least squared error starts, as shares of the given scale."""

NUM_POLISHES = 4
"""Least-squares steps from each start."""


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
    low_grd, high_grd = (sharing.of_columns(ends) for ends in (low_s, high_s))
    best_s, least_s = start_s, torch.full_like(start_s, torch.inf)
    for clip in CLIPS:
        scale_s = sharing.storable(start_s * clip)
        for _ in range(NUM_POLISHES + 1):
            scale_grd = sharing.of_columns(scale_s)
            # In place on fresh temporaries: an allocation costs as much as a pass over the weight.
            codes_grd = torch.div(rows_grd, scale_grd).round_().clamp_(low_grd, high_grd)
            missed_grk = sharing.over_columns((codes_grd * scale_grd).sub_(rows_grd).square_())
            error_s = sharing.sums(missed_grk[None])[0]
            best_s = torch.where(error_s < least_s, scale_s, best_s)
            least_s = torch.minimum(error_s, least_s)
            overlap_s = sharing.sums(sharing.over_columns(rows_grd * codes_grd)[None])[0]
            square_s = sharing.sums(sharing.over_columns(codes_grd.square_())[None])[0]
            scale_s = sharing.storable(_quotient(overlap_s, square_s, scale_s))
    return best_s


def fitted_scale(
    codes_grd: Tensor,
    rows_grd: Tensor,
    through_grd: Tensor,
    inputs: Inputs,
    sharing: Sharing,
    scale_s: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The scale at which codes c that stay as they are miss the weight least, by H; and what they miss.

        error(s) = w H wᵀ − 2 s·c H wᵀ + s²·c H cᵀ        least at s = c H wᵀ / c H cᵀ

    Args:
        codes_grd: codes less the zero point, float64.
        rows_grd: the weight w, float64.
        through_grd: w H.
        inputs: H of the rows.
        sharing: which rows share a scale; a row has one.
        scale_s: the scale that the codes were chosen for; kept where the quotient is not positive.

    Returns:
        the best scales; the errors at `scale_s`; the errors at the best scales.
    """
    codes_through_grd = inputs.times_moments(codes_grd)
    products = (through_grd * rows_grd, codes_through_grd * rows_grd, codes_through_grd * codes_grd)
    power_s, overlap_s, square_s = (
        sharing.sums(product.sum(2, keepdim=True)[None])[0] for product in products
    )

    def error(candidate_s: Tensor) -> Tensor:
        missed = power_s - 2 * candidate_s * overlap_s + candidate_s.square() * square_s
        return missed.clamp_min(0)

    fitted_s = sharing.storable(_quotient(overlap_s, square_s, scale_s))
    before_s, after_s = error(scale_s), error(fitted_s)
    # A scale as it is stored is not quite the best one.
    best_s = torch.where(after_s < before_s, fitted_s, scale_s)
    return best_s, before_s, torch.minimum(before_s, after_s)


def _quotient(overlap: Tensor, square: Tensor, otherwise: Tensor) -> Tensor:
    fits = (overlap > 0) & (square > 0)
    return torch.where(fits, overlap / torch.where(fits, square, torch.ones_like(square)), otherwise)
