"""Which groups' errors add up, and which make up for each other: the loss that is predicted of every pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raysearch.records import BitAssignment, SensitivityTable
from raysearch.records.costs.text import percent
from raysearch.records.low_rank import among, diagonal, sums_among
from raysearch.reporting.grids import Grid, Row

MOST_GROUPS = 80
"""Groups of a map; of more those that take part in most of the loss."""

MOST_PAIRED = 2048
"""Groups whose pairs are looked at: the map of more would take more memory than all else of the page."""

LISTED = 10
"""Pairs that are listed beside it."""


@dataclass(frozen=True)
class PairShares:
    """What pairs of groups have of the predicted loss of an assignment.

    Attributes:
        groups: rows and columns, in the order of the assignment; of more than `MOST_PAIRED` those whose own
            error costs most: |K_qr| ≤ √(K_qq·K_rr), so pairs with others count less.
        num_groups: of the assignment.
        shares: [groups, groups]; a group's own on the diagonal, a pair's on both sides of it.
    """

    groups: tuple[str, ...]
    num_groups: int
    shares: npt.NDArray[np.float64]


def pair_shares(table: SensitivityTable, assignment: BitAssignment) -> PairShares:
    """Share of each pair of groups in the predicted loss of an assignment A.

    The prediction is ½ Σ_{q,r∈A} K_qr. A group's own share, on the diagonal, is ½ K_qq of it; that of a pair
    is K_qr, since it stands there twice. Over all groups the diagonal and one side of it sum to 1.

    Args:
        table: the measurements.
        assignment: its groups are the rows and columns.
    """
    index = {option: row for row, option in enumerate(table.effects)}
    rows = np.array([index[option] for option in assignment.schemes.items()])
    names = list(assignment.schemes)
    order = np.argsort(-diagonal(table.gram)[rows], kind="stable")
    paired = np.sort(order[:MOST_PAIRED])
    gram: npt.NDArray[np.float64] = among(table.gram, rows[paired].tolist())
    loss = gram.sum() / 2
    if len(paired) < len(rows):
        loss = sums_among(table.gram, rows.tolist()).sum() / 2
    gram[np.diag_indices(len(paired))] /= 2
    shares = gram / loss if loss else np.zeros_like(gram)
    return PairShares(tuple(names[place] for place in paired), len(rows), shares)


def interaction_data(table: SensitivityTable, assignment: BitAssignment) -> dict[str, Any]:
    """The map as the page draws it: names of groups, and shares row by row."""
    pairs = pair_shares(table, assignment)
    shares = pairs.shares
    strength = np.abs(shares).sum(axis=1)
    shown = np.sort(np.argsort(-strength, kind="stable")[:MOST_GROUPS])
    return {
        "groups": [pairs.groups[row] for row in shown],
        "num_groups": pairs.num_groups,
        "shares": [[float(f"{value:.3g}") for value in shares[row, shown]] for row in shown],
    }


def pairs_grid(table: SensitivityTable, assignment: BitAssignment) -> Grid:
    """The pairs that count most, whichever way."""
    pairs = pair_shares(table, assignment)
    upper = np.triu(pairs.shares, 1).ravel()
    rows = []
    for pair in np.argsort(-np.abs(upper), kind="stable")[:LISTED]:
        one, other = divmod(int(pair), len(pairs.groups))
        # A square has more places than pairs.
        if one < other:
            rows.append(Row(pairs.groups[one], (pairs.groups[other], percent(float(upper[pair])))))
    caption = ""
    if len(pairs.groups) < pairs.num_groups:
        caption = (
            f"Of the {len(pairs.groups):,} of {pairs.num_groups:,} groups whose own error costs most: a pair "
            f"counts at most twice the geometric mean of what each of the two costs alone."
        )
    return Grid(("group", "with", "of predicted loss"), tuple(rows), caption=caption)
