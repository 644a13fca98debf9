"""What every command does around its work: errors to exit codes, a clean stdout for JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from raysearch.cli import console
from raysearch.errors import RaysearchError

Show = Callable[[Any, Callable[[console.PlainConsole], None]], None]
"""`show(data, draw)`: the data as JSON, or what `draw` puts on a console."""


@contextmanager
def command(as_json: bool) -> Iterator[Show]:
    """Turn errors into one paragraph and an exit code; keep stdout clean for JSON."""
    with _clean_stdout(as_json) as stdout:

        def show(data: Any, draw: Callable[[console.PlainConsole], None]) -> None:
            if as_json:
                stdout.write(json.dumps(data, indent=1) + "\n")
                stdout.flush()
            else:
                draw(console.out())

        try:
            yield show
        except RaysearchError as error:
            kind = type(error).__name__
            if as_json:
                stdout.write(json.dumps({"error": {"type": kind, "message": str(error)}}, indent=1) + "\n")
                stdout.flush()
            console.tell(f"{kind}: {error}")
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            console.tell(str(error) or "stopped before the run had a folder; nothing is left of it")
            raise typer.Exit(1) from error


@contextmanager
def _clean_stdout(active: bool) -> Iterator[Any]:
    # At the level of file descriptors: libraries below print too, and not through Python.
    if not active:
        yield sys.stdout
        return
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(saved), "w") as stdout:
            yield stdout
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
