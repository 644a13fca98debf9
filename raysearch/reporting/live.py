"""How far a run is, as it goes on: a listener for a terminal, a notebook or a log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from raysearch.records import RunStatus
from raysearch.records.costs.text import duration, number
from raysearch.reporting.printable import printable, printable_line

LINE_EVERY_SECONDS = 30.0
LEAST_SECONDS = 0.05
"""A stage that took less leaves no line."""


class ProgressLines:
    """A listener of a run: one moving bar on a terminal, else a line a stage and every 30 seconds, on stderr.

    On a terminal a stage that is done stays, with its time.

    Args:
        console: where to; default: stderr.

    Example:
        `raysearch.run(task, "avg_bits<=4", listener=raysearch.ProgressLines())`
    """

    def __init__(self, console: Console | None = None) -> None:
        self._seconds: Mapping[str, float] | None = None
        self._stage = ""
        self._printed = 0.0
        self._console = console or Console(stderr=True, highlight=False)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
        )
        self._live = Progress(*columns, console=self._console, transient=True)
        self._bar = self._live.add_task("starting", total=None)
        if self._console.is_terminal:
            self._live.start()

    def __call__(self, status: RunStatus) -> None:
        """Show a status."""
        self._show_done(status)
        if status.state != "running":
            self.close()
            return
        if status.message:
            self._console.print(printable(f"{status.run_id}  {status.message}"), soft_wrap=True, markup=False)
        text = printable_line(f"{status.run_id}  {progress_text(status)}")
        is_new = status.stage != self._stage
        self._stage = status.stage
        if self._console.is_terminal:
            if is_new:
                self._live.reset(self._bar)
            self._live.update(self._bar, description=text, completed=status.done, total=status.total or None)
            return
        now = time.monotonic()
        if is_new or now - self._printed > LINE_EVERY_SECONDS:
            self._printed = now
            self._console.print(text, soft_wrap=True, markup=False)

    def _show_done(self, status: RunStatus) -> None:
        """A line for each stage whose time has become known; those of an earlier attempt were told then."""
        before, self._seconds = self._seconds, dict(status.seconds)
        if before is None or not self._console.is_terminal:
            return
        for stage, seconds in status.seconds.items():
            if seconds != before.get(stage) and seconds >= LEAST_SECONDS:
                text = f"{status.run_id}  {stage}: {duration(seconds)}"
                self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Take the moving bar away."""
        if self._console.is_terminal:
            self._live.stop()


def progress_text(status: RunStatus) -> str:
    """Stage, units done of all, rate and remaining time, as far as they are known.

    Example:
        >>> status = RunStatus("r", "running", "search", 30, 90, rate=0.5, remaining_seconds=120.0)
        >>> progress_text(status)
        'search 30/90, 0.50 units/s, 2.0 min left'
    """
    parts = [f"{status.stage} {status.done}/{status.total}" if status.total else status.stage]
    if status.rate and status.state == "running":
        digits = 2 if status.rate < 10 else 0
        parts.append(f"{status.rate:.{digits}f} units/s")
        if status.remaining_seconds:
            parts.append(f"{duration(status.remaining_seconds)} left")
    parts.extend(_detail_texts(status.details))
    return ", ".join(parts)


def _detail_texts(details: Mapping[str, Any]) -> list[str]:
    """The best trial so far; epoch, loss, samples a second, validation metrics; as far as they are known."""
    texts = [f"best {name} {number(value)}" for name, value in details.get("best", {}).items()]
    if "epoch" in details:
        of_all = f"/{details['epochs']}" if "epochs" in details else ""
        texts.append(f"epoch {details['epoch']}{of_all}")
    if "loss" in details:
        texts.append(f"loss {number(details['loss'])}")
    if "samples_per_second" in details:
        texts.append(f"{number(details['samples_per_second'])} samples/s")
    metrics = [f"{name} {number(value)}" for name, value in details.get("validation", {}).items()]
    if metrics:
        texts.append(f"validation: {', '.join(metrics)}")
    return texts
