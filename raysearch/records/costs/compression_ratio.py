"""NNCF's compression ratio R: operations weighted by the wider of their two operands' bit-widths."""

from __future__ import annotations

from raysearch.records.assignment import BitAssignment
from raysearch.records.costs.kinds import COST_KINDS
from raysearch.records.setup import QuantizerSetup


def compression_ratio(setup: QuantizerSetup, assignment: BitAssignment) -> float:
    """R = 8·Σ F_j / Σ F_j·max(w_j, a_j) over all weights of a setup; the cost `effective`.

    w_j is the weight's width and a_j that of the activation that feeds its operation; either counts as 32
    when it is float. F_j is the operation's FLOPs, 2·MACs, and cancels but for its proportions. All at 8 bits
    gives 1. R is neither the model's size nor its bits per weight: `CostModel` has those.

    Returns:
        R, or NaN when no MACs are known, since R has no meaning then.
    """
    return COST_KINDS["effective"].formula(setup).of(assignment.per_point(setup))
