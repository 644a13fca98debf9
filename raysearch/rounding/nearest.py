"""Nearest rounding: the quantizer's own codes at the calibrated range."""

from __future__ import annotations

import math

import numpy as np
import torch

from raysearch.quantizer import Quantizer
from raysearch.records.rounding import RoundedWeight
from raysearch.records.scheme import Scheme
from raysearch.rounding.problem import Problem


def round_nearest(problem: Problem) -> dict[Scheme, RoundedWeight]:
    """Every scheme of a weight by the rounding that its quantizer does; errors where its inputs are known."""
    rounded = {}
    inputs = problem.inputs
    mean_moment = math.nan if inputs is None else inputs.mean_moment() / problem.num_samples
    for target in problem.targets:
        quantizer = problem.quantizer(target)
        start = target.start.with_scales(np.ravel)
        with torch.no_grad():
            codes = quantizer.codes(problem.weight)
            error = _error(problem, quantizer)
        rounded[target.scheme] = RoundedWeight(
            codes=codes.cpu().numpy(),
            scale=start.scale,
            zero_point=start.zero_point,
            signed=quantizer.signed,
            granularity=target.point.granularity,
            error_nearest=error,
            error=error,
            method="nearest",
            notes=problem.notes,
            mean_moment=mean_moment,
            minimum=start.minimum,
        )
    return rounded


def _error(problem: Problem, quantizer: Quantizer) -> float:
    """tr(ΔW H ΔWᵀ) of the quantizer's own rounding, mean per sample; NaN where the inputs are not known."""
    inputs = problem.inputs
    if inputs is None:
        return math.nan
    delta = quantizer(problem.weight) - problem.weight
    rows_grd = inputs.layout.rows(delta).double()
    error_gr = (rows_grd * inputs.times_moments(rows_grd)).sum(-1)
    return float((inputs.row_weights * error_gr).sum()) / problem.num_samples
