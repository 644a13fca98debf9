"""Nearest rounding: the quantizer's own codes at the calibrated range."""

from __future__ import annotations

import math

import torch

from raysearch.records.rounding import RoundedWeight
from raysearch.records.scheme import Scheme
from raysearch.rounding.problem import Problem


def round_nearest(problem: Problem) -> dict[Scheme, RoundedWeight]:
    """Every scheme of a weight by the rounding that its quantizer does; no second moments are needed."""
    rounded = {}
    for target in problem.targets:
        quantizer = problem.quantizer(target)
        with torch.no_grad():
            codes = quantizer.codes(problem.weight)
        rounded[target.scheme] = RoundedWeight(
            codes=codes.cpu().numpy(),
            scale=target.start.scale.reshape(-1),
            zero_point=target.start.zero_point.reshape(-1),
            signed=quantizer.signed,
            granularity=problem.point.granularity,
            error_nearest=math.nan,
            error=math.nan,
            method="nearest",
            notes=problem.notes,
        )
    return rounded
