"""The search as an Optuna journal, for optuna-dashboard and `optuna.load_study`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from raysearch.records import Budget, QuantizerSetup, SearchTrial
from raysearch.search.optuna_bridge import (
    STUDY_NAME,
    freeze_trial,
    make_distributions,
    make_study,
    quiet_optuna,
)
from raysearch.search.problem.space import OptionSpace

__all__ = ["STUDY_NAME", "write_journal"]


def write_journal(
    path: str | Path,
    trials: Sequence[SearchTrial],
    setup: QuantizerSetup,
    budgets: Sequence[Budget],
    *,
    objective: str = "divergence",
    maximize: bool = False,
    front: str | None = None,
) -> None:
    """Write all trials, with their constraints, as the study "raysearch" of a journal file.

    The file is written whole beside its place and then moved there; an older one is replaced. The search
    itself runs in memory: a journal synchronises the disk for every parameter it is told.

    Args:
        path: the file, on a local disk.
        trials: all trials in number order.
        setup: the setup they belong to.
        budgets: the budgets they keep.
        objective: what was measured.
        maximize: whether more of it is better.
        front: the second objective, a kind of cost; None: the study has one.

    Example:
        `optuna.load_study(study_name="raysearch", storage=JournalStorage(JournalFileBackend(path)))`, or
        `optuna-dashboard study.journal` in a shell.
    """
    path = Path(path)
    distributions = make_distributions(OptionSpace(setup))
    # The folder lies beside the file, so that the move is within one file system.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder, quiet_optuna():
        backend = JournalFileBackend(str(Path(folder) / path.name))
        study = make_study(maximize, front, JournalStorage(backend))
        study.set_user_attr("objective", objective)
        study.set_user_attr("budgets", [budget.text for budget in budgets])
        study.set_user_attr("setup_fingerprint", setup.fingerprint())
        study.add_trials([freeze_trial(trial, distributions, front) for trial in trials])
        os.replace(Path(folder) / path.name, path)
