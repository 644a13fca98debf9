"""A run at the bytes that a uniform scheme takes, with a line a change of its status."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import raysearch
from raysearch.records import CostModel


def drive_run(
    task: raysearch.Task, config: Mapping[str, Any], storage: Path, run_id: str, scheme: int | str
) -> raysearch.SavedRun:
    """The run in this process; what is there goes on.

    Args:
        task: what is quantized.
        config: settings.
        storage: folder of runs.
        run_id: name of the run in it.
        scheme: the uniform one whose bytes are the budget.
    """
    resume = (storage / run_id / "run.json").exists()
    budget = byte_budget(task, config, scheme)
    raysearch.run(
        task, budget, storage, config=config, run_id=run_id, resume=resume, workers=0, listener=show
    )
    return raysearch.load_run(run_id, storage)


def byte_budget(task: raysearch.Task, config: Mapping[str, Any], scheme: int | str) -> str:
    """No more bytes than all weights of a task at this scheme."""
    setup, _ = raysearch.inspect(task, config)
    return uniform_bytes(setup, scheme)


def uniform_bytes(setup: raysearch.QuantizerSetup, scheme: int | str) -> str:
    """No more bytes than all weights of a setup at this scheme."""
    size = CostModel(setup).costs(raysearch.BitAssignment.uniform(setup, scheme))["size"]
    return f"size<={size:.0f}B"


def show(status: raysearch.RunStatus) -> None:
    """A line a change of a run."""
    print(f"{time.process_time():6.0f} CPU s: {status.stage} {status.done}/{status.total}", flush=True)
