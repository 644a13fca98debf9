"""What can be asked of a run, as functions of its id, path or URI; each is a method of `SavedRun`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raysearch.records import (
    BitAssignment,
    ExportManifest,
    QuantizerSetup,
    RunStatus,
    SearchTrial,
    SensitivityTable,
)
from raysearch.saved_run import Location, load_run
from raysearch.task import Task


def status(run: Location, storage: Location | None = None) -> RunStatus:
    """The current status of a run; see `SavedRun.status`."""
    return load_run(run, storage).status()


def load_sensitivity(
    run: Location, storage: Location | None = None
) -> tuple[QuantizerSetup, SensitivityTable, BitAssignment | None]:
    """What a run measured and what it chose; see `SavedRun.load_sensitivity`."""
    return load_run(run, storage).load_sensitivity()


def resolve(
    run: Location,
    budget: str | Sequence[str],
    storage: Location | None = None,
    *,
    surrogate: str = "response",
) -> SearchTrial:
    """The best assignment for another budget, from what a run measured; see `SavedRun.resolve`.

    Args:
        run: see `load_run`.
        budget: one expression, or several that must all hold.
        storage: see `load_run`.
        surrogate: see `SavedRun.resolve`.
    """
    return load_run(run, storage).resolve(budget, surrogate=surrogate)


def resolve_measured(
    run: Location,
    budget: str | Sequence[str],
    storage: Location | None = None,
    **options: Any,
) -> tuple[SearchTrial, ...]:
    """The best assignments for another budget, measured; see `SavedRun.resolve_measured`.

    Args:
        run: see `load_run`.
        budget: one expression, or several that must all hold.
        storage: see `load_run`.
        **options: of `SavedRun.resolve_measured`.
    """
    return load_run(run, storage).resolve_measured(budget, **options)


def report(run: Location, storage: Location | None = None) -> str:
    """Render the HTML report of a run again; see `SavedRun.report`."""
    return load_run(run, storage).report()


def export_run(
    run: Location,
    targets: Sequence[str],
    storage: Location | None = None,
    *,
    task: Task | str | None = None,
) -> ExportManifest:
    """Export a trained run to further targets; see `SavedRun.export`.

    Args:
        run: see `load_run`.
        targets: the targets to add.
        storage: see `load_run`.
        task: the task of the run; default: the one it names.
    """
    return load_run(run, storage).export(targets, task=task)


def retrieve(run: Location, storage: Location | None, to: Location) -> Path:
    """Copy a finished run to a local folder and verify its model; see `SavedRun.retrieve`.

    Args:
        run: see `load_run`.
        storage: see `load_run`.
        to: a folder that is empty, does not exist yet, or holds this same run.
    """
    return load_run(run, storage).retrieve(to)
