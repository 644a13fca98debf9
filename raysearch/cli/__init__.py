"""The commands: parse, call, print. Exit code 0 done, 1 failed, 2 wrong use.

A command imports what it calls when it is called: help and status need neither torch nor Ray.
"""

from raysearch.cli import cluster, files, latency, saved, settings, walk
from raysearch.cli.options import app

__all__ = ["app", "cluster", "files", "latency", "main", "saved", "settings", "walk"]


def main() -> None:
    """Entry point."""
    app()
