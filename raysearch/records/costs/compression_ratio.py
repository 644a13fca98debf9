"""NNCF's compression ratio R: operations weighted by the wider of their two operands' bit-widths."""

from __future__ import annotations

import math
from collections.abc import Mapping

from raysearch.records.assignment import BitAssignment
from raysearch.records.setup import FLOAT_BITS, QuantizerSetup


def compression_ratio(setup: QuantizerSetup, assignment: BitAssignment) -> float:
    """R = 8·Σ F_j / Σ F_j·max(w_j, a_j) over all weights of a setup.

    w_j is the weight's width and a_j that of the activation that feeds its operation; either counts as 32
    when it is float. F_j is the operation's FLOPs, 2·MACs, and cancels but for its proportions. All at 8 bits
    gives 1. R is neither the model's size nor its bits per weight: `CostModel` has those.

    Returns:
        R, or NaN when no MACs are known, since R has no meaning then.
    """
    return ratio_of(setup, assignment.per_point(setup))


def ratio_of(setup: QuantizerSetup, bits: Mapping[str, int]) -> float:
    """The same from point id → width; a point that is not named is float."""
    total = weighted = 0
    for name, point in setup.of_kind("weight").items():
        width = max(bits.get(name, FLOAT_BITS), bits.get(point.input_point, FLOAT_BITS))
        total += point.macs
        weighted += point.macs * width
    return 8 * total / weighted if weighted else math.nan
