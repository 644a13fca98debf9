"""Rounding to values q·s − m: that of w + m to q·s, with minima that are fitted to the codes as well.

G  convolution groups    R  rows of a group    d  inputs of a row
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from raysearch.quantizer import scale_steps
from raysearch.quantizer.blocks import spread
from raysearch.records import QuantizerSpec
from raysearch.records.ranges import FloatArray
from raysearch.records.rounding import RoundedWeight
from raysearch.records.scheme import Scheme
from raysearch.rounding.joint_fit import jointly_fitted_scale
from raysearch.rounding.problem import Problem, Target
from raysearch.rounding.sharing import Sharing

Round = Callable[[Problem], dict[Scheme, RoundedWeight]]


def round_with_minima(problem: Problem, round_others: Round) -> dict[Scheme, RoundedWeight]:
    """Every scheme of a weight, of which some have minima.

    With the minima m as they were calibrated, w + m is rounded to unsigned codes times scales. Then m is
    fitted by H to those codes, all groups of a row jointly, as they are stored, and w + m is rounded once
    more; what misses less by H is kept.

    Cost: two roundings of each scheme with minima.

    Args:
        problem: the weight; its inputs are known.
        round_others: rounds a weight whose schemes have no minima.
    """
    others = tuple(target for target in problem.targets if target.start.minimum is None)
    rounded = round_others(replace(problem, targets=others)) if others else {}
    for target in problem.targets:
        if target.start.minimum is not None:
            rounded[target.scheme] = _round(problem, target, round_others)
    return {target.scheme: rounded[target.scheme] for target in problem.targets}


def _round(problem: Problem, target: Target, round_others: Round) -> RoundedWeight:
    first = _round_at(problem, target, round_others)
    # A copy: what is rounded is read-only.
    scale, minimum = first.scale.copy(), _fitted_minimum(problem, target, first)
    start = replace(target.start, scale=scale, minimum=minimum)
    second = _round_at(problem, replace(target, start=start), round_others)
    # The nearest codes are those at the calibrated range in any case.
    return first if first.error <= second.error else replace(second, error_nearest=first.error_nearest)


def _round_at(problem: Problem, target: Target, round_others: Round) -> RoundedWeight:
    """The codes at given minima."""
    assert target.start.minimum is not None
    minimum = torch.from_numpy(target.start.minimum.copy()).to(problem.weight.device)
    shape, granularity = problem.point.shape, target.point.granularity
    places = spread(minimum.reshape(granularity.scale_shape(shape)), shape, granularity)
    unsigned = replace(
        target,
        point=replace(target.point, spec=QuantizerSpec("symmetric", signed=False)),
        start=replace(target.start, minimum=None),
    )
    shifted = replace(problem, weight=problem.weight.float() + places, targets=(unsigned,))
    rounded = round_others(shifted)[target.scheme]
    return replace(rounded, minimum=target.start.minimum)


def _fitted_minimum(problem: Problem, target: Target, rounded: RoundedWeight) -> FloatArray:
    """The minima at which the codes miss the weight least, by H, as they are stored."""
    inputs, start = problem.inputs, target.start.minimum
    assert inputs is not None
    assert start is not None
    granularity, scale_format = target.point.granularity, target.point.scale_format
    places = inputs.layout.scale_places(problem.point.shape, granularity)
    if places is None:
        return start
    device = problem.weight.device
    minimum_s = torch.from_numpy(start.copy()).to(device)
    sharing = Sharing(
        places.to(device),
        len(minimum_s),
        inputs.row_weights,
        scale_format,
        scale_steps(minimum_s, scale_format),
        least=0,
    )
    rows_grd = inputs.layout.rows(problem.weight).double()
    values = torch.from_numpy(replace(rounded, minimum=None).values()).to(device)
    above_grd = inputs.layout.rows(values).double() - rows_grd
    ones_grd: Tensor = torch.ones_like(rows_grd)
    fitted_s = jointly_fitted_scale(ones_grd, above_grd, inputs, sharing, minimum_s.double())[0]
    fitted: FloatArray = fitted_s.float().cpu().numpy()
    return fitted
