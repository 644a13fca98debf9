"""The commands: parse, call, print. Exit code 0 done, 1 failed, 2 wrong use.

A command imports what it calls when it is called: help and status need neither torch nor Ray.
"""

import warnings
from shutil import get_terminal_size
from typing import Any

from raysearch.cli import cluster, files, latency, saved, settings, walk
from raysearch.cli.options import app
from raysearch.reporting.printable import printable, wrapped

__all__ = ["app", "cluster", "files", "latency", "main", "saved", "settings", "walk"]

_with_its_place = warnings.formatwarning


def main() -> None:
    """Entry point."""
    warnings.formatwarning = _warning_text
    app()


def _warning_text(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> str:
    """A warning to the user says no line of code; any other says where it comes from."""
    if category is UserWarning:
        return f"{wrapped(printable(f'warning: {message}'), get_terminal_size().columns)}\n"
    return _with_its_place(message, category, *place, **more)
