"""Tasks with odd fields: refused by name before any compute, or run to the end."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import raysearch
from raysearch.config import load_config, with_defaults
from raysearch.determinism import plain_modes, seeded
from raysearch.pipeline.inputs import check_inputs
from raysearch.pipeline.preflight import preflight
from raysearch.task import Task
from tests.chaos.odd_tasks import odd_fields
from tests.chaos.tally import Tally
from tests.support.command_line import QUICK

RUN_EVERY = 25
"""Of so many tasks one is run to the end, where it is not refused."""

SETTINGS = [
    *QUICK,
    "calibration.num_samples=12",
    "search.num_trials=4",
    'export.targets=["packed"]',
    "training.epochs=1",
]
BUDGET = "avg_bits<=5"


def fuzz_tasks(tally: Tally, count: int, seed: int, scratch: Path) -> None:
    """Try tasks with odd fields.

    Args:
        tally: counts what came of it.
        count: tasks.
        seed: of the draws.
        scratch: a folder.
    """
    for number in range(count):
        draw = random.Random(f"task/{seed}/{number}")
        state = draw.getstate()
        shown = f"{seed}/{number}"

        def drawn(state: Any = state) -> Task:
            again = random.Random()
            again.setstate(state)
            return Task(**odd_fields(again))

        accepted = tally.take("task", shown, lambda drawn=drawn: _tried(drawn()))
        if accepted and number % RUN_EVERY == 0:
            tally.take("task, run to the end", shown, lambda drawn=drawn: _run(drawn(), scratch / "tasks"))


def _tried(task: Task) -> bool:
    """Through all that is tried before a run."""
    config = with_defaults(load_config(assignments=SETTINGS), task.settings)
    with seeded(0), plain_modes():
        preflight(check_inputs(task, config, [BUDGET]), lambda done, total: None)
    return True


def _run(task: Task, storage: Path) -> bool:
    shutil.rmtree(storage, ignore_errors=True)
    config = load_config(assignments=SETTINGS)
    raysearch.run(task, BUDGET, storage, config=config, workers=0)
    return True
