"""The HTML report and the tables of a run, from saved records only."""

from raysearch.reporting.answer import verdict
from raysearch.reporting.grids import finalists_grid
from raysearch.reporting.page import ReportRecords, render_report
from raysearch.reporting.sensitivity_view import (
    predicted_shares,
    sensitivity_grid,
    sensitivity_rows,
    sketch_note,
)

__all__ = [
    "ReportRecords",
    "finalists_grid",
    "predicted_shares",
    "render_report",
    "sensitivity_grid",
    "sensitivity_rows",
    "sketch_note",
    "verdict",
]
