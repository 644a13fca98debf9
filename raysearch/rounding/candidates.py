"""The scales and zero points that a weight's rows are first tried with.

G  convolution groups    R  rows of a group    d  inputs of a row    K  scale groups along a row    S  scales
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raysearch.rounding.problem import Inputs
from raysearch.rounding.scales import least_squares_scale
from raysearch.rounding.sharing import Sharing

SHARES = (1.0, 0.85, 0.7, 0.55, 0.4)
"""Clips of each end of an asymmetric grid that are tried first, every pair of them."""

STEPS = (0.075, 0.0375)
"""Then the best pair's neighbours this far off, all eight, once for each step."""

NEAR_BY_INPUTS = (0.87, 0.94, 1.0, 1.06, 1.14)
"""Multiples that are tried of the scales of groups that are best by their own inputs."""

Levels = tuple[int, int]


@dataclass(frozen=True)
class Steps:
    """A scale and a zero point, one of each for every scale of a weight; float64.

    Attributes:
        scale_s: as stored.
        zero_s: an integer of the grid.
    """

    scale_s: Tensor
    zero_s: Tensor

    def where(self, is_other_s: Tensor, other: Steps) -> Steps:
        """The other's where the mask says so."""
        scale_s = torch.where(is_other_s, other.scale_s, self.scale_s)
        return Steps(scale_s, torch.where(is_other_s, other.zero_s, self.zero_s))


@dataclass(frozen=True)
class Weight:
    """The rows of a weight, what they read, and which of their elements share a scale."""

    rows_grd: Tensor
    inputs: Inputs
    sharing: Sharing

    def times(self, steps: Steps, factor: float) -> Steps:
        """All scales times a factor, as they would be stored, with the zero points where they are."""
        return Steps(self.sharing.storable(steps.scale_s * factor), steps.zero_s)

    def misses(self, steps: Steps, levels: Levels) -> Tensor:
        """Nearest code's value less the weight, [G, R, d]."""
        of_columns = self.sharing.of_columns
        scale_grd, zero_grd = of_columns(steps.scale_s), of_columns(steps.zero_s)
        low, high = levels
        codes_grd = torch.div(self.rows_grd, scale_grd).round_().clamp_(low - zero_grd, high - zero_grd)
        return codes_grd.mul_(scale_grd).sub_(self.rows_grd)

    def weight_error(self, missed_grd: Tensor) -> Tensor:
        """The sum of squares of each scale's elements, [S]."""
        return self.sharing.sums(self.sharing.over_columns(missed_grd.square())[None])[0]

    def input_error(self, missed_grd: Tensor) -> Tensor:
        """The error by what each scale's elements read, as if all others were exact, [S]."""
        through_grd = self.inputs.times_own_moments(missed_grd, self.sharing.places.spans())
        return self.sharing.sums(self.sharing.over_columns(through_grd * missed_grd)[None])[0]


def first_candidates(
    weight: Weight, start: Steps, levels: Levels, mode: str, factors: Sequence[float]
) -> list[Steps]:
    """What is tried first: the calibrated steps, then multiples of those of least error.

    Symmetric: of least squared weight error; with several scales a row also multiples of the one, of these,
    that has least error by what the elements of each scale read. Asymmetric: multiples of those of least
    weight error and of least error by the inputs among many clips of both ends.

    Args:
        weight: its rows and what they read.
        start: the calibrated steps.
        levels: lowest and highest code.
        mode: "symmetric" or "asymmetric".
        factors: the multiples.
    """
    low, high = levels
    if mode == "asymmetric":
        by_weight = best_ends(weight, levels, weight.weight_error)
        by_inputs = best_ends(weight, levels, weight.input_error)
        return [start, *(weight.times(base, factor) for base in (by_weight, by_inputs) for factor in factors)]
    base_s = least_squares_scale(
        weight.rows_grd, weight.sharing, start.scale_s, low - start.zero_s, high - start.zero_s
    )
    base = Steps(base_s, start.zero_s)
    candidates = [start, *(weight.times(base, factor) for factor in factors)]
    if weight.sharing.has_groups:
        by_inputs = _best_of(candidates, weight, levels, weight.input_error)
        candidates.extend(weight.times(by_inputs, factor) for factor in NEAR_BY_INPUTS)
    return candidates


def best_ends(weight: Weight, levels: Levels, error: Callable[[Tensor], Tensor]) -> Steps:
    """The steps of least error of nearest codes among clips of both ends of an asymmetric grid.

    The interval of a scale is [min w, max w] widened to 0, so that 0 is a value of the grid. Each end is
    clipped by itself: to `SHARES` of it first, then near the best pair by `STEPS`. Ties go to the wider one.

    Cost: 41 roundings and errors of the weight.

    Args:
        weight: its rows.
        levels: lowest and highest code.
        error: of the misses of a weight, one a scale.
    """
    bottom, top = levels
    low_s, high_s = weight.sharing.extremes(weight.rows_grd)

    def steps_of(low_share_s: Tensor, high_share_s: Tensor) -> Steps:
        clipped_low_s, clipped_high_s = low_s * low_share_s, high_s * high_share_s
        scale_s = weight.sharing.storable((clipped_high_s - clipped_low_s) / (top - bottom))
        zero_s = (bottom + torch.round(-clipped_low_s / scale_s)).clamp(bottom, top)
        return Steps(scale_s, zero_s)

    ones_s = torch.ones_like(low_s)
    best_low_s, best_high_s = ones_s, ones_s
    best = steps_of(ones_s, ones_s)
    least_s = error(weight.misses(best, levels))
    pairs = [(ones_s * low, ones_s * high) for low in SHARES for high in SHARES]
    for step in (0.0, *STEPS):
        if step:
            near = (-step, 0.0, step)
            pairs = [(best_low_s + low, best_high_s + high) for low in near for high in near]
        for low_share_s, high_share_s in pairs:
            low_share_s, high_share_s = low_share_s.clamp(step, 1), high_share_s.clamp(step, 1)
            steps = steps_of(low_share_s, high_share_s)
            error_s = error(weight.misses(steps, levels))
            is_better_s = error_s < least_s
            least_s = torch.where(is_better_s, error_s, least_s)
            best = best.where(is_better_s, steps)
            best_low_s = torch.where(is_better_s, low_share_s, best_low_s)
            best_high_s = torch.where(is_better_s, high_share_s, best_high_s)
    return best


def _best_of(
    candidates: Sequence[Steps], weight: Weight, levels: Levels, error: Callable[[Tensor], Tensor]
) -> Steps:
    """For each scale the candidate whose nearest codes miss least."""
    best = candidates[0]
    least_s = error(weight.misses(best, levels))
    for steps in candidates[1:]:
        error_s = error(weight.misses(steps, levels))
        best = best.where(error_s < least_s, steps)
        least_s = torch.minimum(least_s, error_s)
    return best
