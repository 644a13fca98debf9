"""The HTML report and the tables of a run, from saved records only."""

from raysearch.reporting.answer import verdict
from raysearch.reporting.compare import render_comparison
from raysearch.reporting.page import render_report
from raysearch.reporting.records import ReportRecords
from raysearch.reporting.sensitivity_view import (
    predicted_shares,
    sensitivity_grid,
    sensitivity_rows,
    sketch_note,
)

__all__ = [
    "ReportRecords",
    "predicted_shares",
    "render_comparison",
    "render_report",
    "sensitivity_grid",
    "sensitivity_rows",
    "sketch_note",
    "verdict",
]
