"""The sensitivity table as people read it: a row a group, its widths side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from raysearch.records import (
    BitAssignment,
    QuantizerSetup,
    Scheme,
    SensitivityTable,
)
from raysearch.records.costs.text import MISSING, number, percent
from raysearch.records.low_rank import sums_among
from raysearch.reporting.grids import Grid, Row


def predicted_shares(table: SensitivityTable, assignment: BitAssignment) -> dict[str, float]:
    """Share of each group in the predicted loss of an assignment A.

    The prediction is ½ Σ_{q,r∈A} K_qr; a group's part is ½ Σ_r K_qr over its own option q, so interactions
    count half to either side. The shares sum to 1; one is negative where a group makes up for others.

    Args:
        table: the measurements.
        assignment: groups that it does not name stay float and have no share.

    Returns:
        group id → share; all 0 where the prediction is 0.
    """
    index = {option: row for row, option in enumerate(table.effects)}
    rows = [index[option] for option in assignment.schemes.items()]
    parts = sums_among(table.gram, rows)
    total = float(parts.sum())
    shares = parts / total if total else np.zeros(len(parts))
    return dict(zip(assignment.schemes, shares.tolist(), strict=True))


def sensitivity_rows(
    setup: QuantizerSetup, table: SensitivityTable, assignment: BitAssignment | None = None
) -> list[dict[str, Any]]:
    """One mapping a group, for JSON.

    Args:
        setup: points and groups.
        table: the measurements.
        assignment: the run's choice, once there is one: adds `chosen` and `share`.

    Returns:
        `group`, `kind`, `traces` (one a weight, with its errors), and `widths`: scheme → perturbation
        ‖Q(W) − W‖², response norm √K_qq (root mean square over samples of ‖Λ^½ δ_q‖) and the measured
        divergence of the option alone.
    """
    shares = predicted_shares(table, assignment) if assignment else {}
    rows = []
    for group in setup.groups.values():
        traces = [table.traces[point] for point in group.points if point in table.traces]
        row: dict[str, Any] = {
            "group": group.id,
            "kind": setup.group_kind(group.id),
            "traces": [asdict(trace) for trace in traces],
            "widths": {},
        }
        for scheme in group.schemes:
            effect = table.effects[group.id, scheme]
            row["widths"][str(scheme)] = {
                "perturbation": effect.perturbation,
                "response_norm": math.sqrt(2 * max(effect.response, 0.0)),
                "divergence": effect.divergence,
            }
        if assignment and group.id in assignment.schemes:
            row |= {"chosen": assignment.schemes[group.id].as_json, "share": shares[group.id]}
        rows.append(row)
    return rows


def sketch_note(table: SensitivityTable) -> str:
    """One line on how exact the responses are; empty where a table of an earlier version does not say."""
    if math.isnan(table.sketch_error):
        return ""
    if not table.sketch_error:
        return "responses: exact, no output was projected"
    return (
        f"responses: of projected outputs; standard error of K_qq at most {table.sketch_error:.1%} of it "
        f"(sensitivity.sketch_size lowers it)"
    )


def sensitivity_grid(
    setup: QuantizerSetup, table: SensitivityTable, assignment: BitAssignment | None = None
) -> Grid:
    """The same as text: a column a scheme for perturbations and for response norms; arguments as there.

    Args:
        setup: points and groups.
        table: the measurements.
        assignment: the run's choice; without one its two columns are left out.
    """
    schemes = sorted({scheme for group in setup.groups.values() for scheme in group.schemes})
    columns = (
        "group",
        "trace ± standard error",
        *(f"‖ΔW‖² at {scheme}" for scheme in schemes),
        *(f"response at {scheme}" for scheme in schemes),
        *(("bits", "share of predicted loss") if assignment else ()),
    )
    return Grid(
        columns,
        tuple(_row(entry, schemes, bool(assignment)) for entry in sensitivity_rows(setup, table, assignment)),
    )


def _row(entry: Mapping[str, Any], schemes: Sequence[Scheme], chosen: bool) -> Row:
    traces = "; ".join(f"{number(t['value'])} ± {number(t['stderr'])}" for t in entry["traces"]) or MISSING
    options = [entry["widths"].get(str(scheme)) for scheme in schemes]
    is_weight = entry["kind"] == "weight"
    cells = [traces]
    cells += [number(o["perturbation"]) if o and is_weight else MISSING for o in options]
    cells += [number(o["response_norm"]) if o else MISSING for o in options]
    if chosen:
        cells += [str(entry.get("chosen", "float")), percent(entry.get("share"))]
    return Row(entry["group"], tuple(cells))
