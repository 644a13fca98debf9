"""The trials of a run as a journal of Optuna, for its dashboard: written where it is asked for."""

from __future__ import annotations

import os
from pathlib import Path

from raysearch.artifacts import RunStore, codecs
from raysearch.config import load_config
from raysearch.errors import StorageError
from raysearch.records import parse_budgets
from raysearch.search import write_journal


def save_journal(store: RunStore, to: str | os.PathLike[str]) -> Path:
    """Write the trials of a run's search; see `write_journal`.

    Work: Optuna takes about a millisecond a trial.

    Args:
        store: a run whose search is done.
        to: the file, on a local disk; an older one is replaced.

    Returns:
        The absolute path of the file.

    Raises:
        StorageError: the search is not done, a record is damaged, or the file cannot be written.
    """
    config = store.open()["config"]
    result = store.load(codecs.SEARCH)
    path = Path(to).expanduser().absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_journal(
            path,
            result.trials,
            store.load(codecs.SETUP),
            parse_budgets(config["budget"]),
            objective=result.objective,
            maximize=result.maximize,
            front=load_config(overrides={"search": config.get("search", {})}).search.front_kind,
        )
    except OSError as error:
        raise StorageError(f"the journal cannot be written to {path}: {error}") from error
    return path
