"""The HTML report, from saved records only."""

from raysearch.report.page import render_report

__all__ = ["render_report"]
