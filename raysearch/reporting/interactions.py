"""Which groups' errors add up, and which make up for each other: the loss that is predicted of every pair."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from raysearch.records import BitAssignment, SensitivityTable
from raysearch.records.costs.text import percent
from raysearch.records.low_rank import among
from raysearch.reporting.grids import Grid, Row

MOST_GROUPS = 80
"""Groups of a map; of more those that take part in most of the loss."""

LISTED = 10
"""Pairs that are listed beside it."""


def pair_shares(table: SensitivityTable, assignment: BitAssignment) -> npt.NDArray[np.float64]:
    """Share of each pair of groups in the predicted loss of an assignment A.

    The prediction is ½ Σ_{q,r∈A} K_qr. A group's own share, on the diagonal, is ½ K_qq of it; that of a pair
    is K_qr, since it stands there twice, and is given on both sides of the diagonal. The diagonal and one
    side of it sum to 1.

    Args:
        table: the measurements.
        assignment: its groups, in this order, are the rows and columns.
    """
    index = {option: row for row, option in enumerate(table.effects)}
    rows = [index[option] for option in assignment.schemes.items()]
    gram: npt.NDArray[np.float64] = among(table.gram, rows)
    loss = gram.sum() / 2
    gram[np.diag_indices(len(rows))] /= 2
    return gram / loss if loss else np.zeros_like(gram)


def interaction_data(table: SensitivityTable, assignment: BitAssignment) -> dict[str, Any]:
    """The map as the page draws it: names of groups, and shares row by row."""
    shares = pair_shares(table, assignment)
    strength = np.abs(shares).sum(axis=1)
    shown = np.sort(np.argsort(-strength, kind="stable")[:MOST_GROUPS])
    names = list(assignment.schemes)
    return {
        "groups": [names[row] for row in shown],
        "num_groups": len(names),
        "shares": [[float(f"{value:.3g}") for value in shares[row, shown]] for row in shown],
    }


def pairs_grid(table: SensitivityTable, assignment: BitAssignment) -> Grid:
    """The pairs that count most, whichever way."""
    shares = pair_shares(table, assignment)
    names = list(assignment.schemes)
    upper = np.triu_indices(len(names), 1)
    order = np.argsort(-np.abs(shares[upper]), kind="stable")[:LISTED]
    rows = []
    for pair in order:
        one, other = upper[0][pair], upper[1][pair]
        rows.append(Row(names[one], (names[other], percent(float(shares[one, other])))))
    return Grid(("group", "with", "of predicted loss"), tuple(rows))
