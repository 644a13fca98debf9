"""The runs that a storage holds."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

from raysearch.artifacts import codecs
from raysearch.artifacts.owner import current_status
from raysearch.artifacts.run_store import RUN_FILE, RunStore
from raysearch.artifacts.storage import Storage
from raysearch.errors import StorageError
from raysearch.records import RunResult, RunStatus


@dataclass(frozen=True)
class ListedRun:
    """One run of a storage.

    Attributes:
        run_id: the run.
        task: the factory that gave its task.
        budget: the expressions as given.
        status: its status now; of state "unknown" where it cannot be read, with the reason.
        result: of a run that is done; None before.
    """

    run_id: str
    task: str
    budget: tuple[str, ...]
    status: RunStatus
    result: RunResult | None


def list_runs(storage: str | os.PathLike[str]) -> tuple[ListedRun, ...]:
    """Every run directly below a storage, by run id, which sorts those that name themselves by time.

    Cost: one listing, and three or four small files a run. A folder that is no run is left out; of a run
    whose records are damaged, its status says so.

    Args:
        storage: folder or URI.

    Raises:
        StorageError: the storage cannot be reached.
    """
    place = Storage(storage)
    names = [name for name in place.folders() if place.exists(f"{name}/{RUN_FILE}")]
    return tuple(_listed(storage, name) for name in names)


def _listed(storage: str | os.PathLike[str], name: str) -> ListedRun:
    task = ""
    budget: tuple[str, ...] = ()
    try:
        store = RunStore(storage, name)
        config = store.open()["config"]
        task, budget = str(config.get("task", "")), tuple(map(str, config.get("budget", ())))
        status = current_status(store)
    except StorageError as error:
        return ListedRun(name, task, budget, RunStatus(name, "unknown", message=str(error)), None)
    result = None
    if status.state == "done":
        with suppress(StorageError):
            result = store.load(codecs.RESULT)
    return ListedRun(name, task, budget, status, result)
