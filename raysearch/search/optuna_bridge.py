"""Optuna's side of a search: its study, its trials, and the journal that optuna-dashboard reads."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from raysearch.records import Budget, QuantizerSetup, SearchTrial
from raysearch.search.problem.space import OptionSpace
from raysearch.search.samplers.base import make_distributions

STUDY_NAME = "raysearch"
_OF_OPTUNA = ("constraints", "fixed_params")


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Show only Optuna's own warnings and errors; its verbosity is put back at the end."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def make_study(
    maximize: bool, front: str | None, storage: BaseStorage | None = None, name: str = STUDY_NAME
) -> Study:
    """The study: one objective, or the measured one and the cost `front`, which is minimised.

    Args:
        maximize: whether more of the measured objective is better.
        front: a kind of cost, or None.
        storage: default: memory.
        name: of the study; one that the storage has goes on.
    """
    directions = [StudyDirection.MAXIMIZE if maximize else StudyDirection.MINIMIZE]
    if front is not None:
        directions.append(StudyDirection.MINIMIZE)
    study = optuna.create_study(directions=directions, storage=storage, study_name=name, load_if_exists=True)
    if front is not None:
        study.set_metric_names(["measured", front])
    return study


def objective_values(trial: SearchTrial, front: str | None) -> list[float]:
    """The objectives of a complete trial: the measured value, and the front's cost if there is one."""
    if front is None:
        return [trial.value]
    return [trial.value, trial.costs[front]]


def user_attributes(trial: SearchTrial) -> dict[str, Any]:
    """What the dashboard shows beside the widths."""
    return {
        "costs": dict(trial.costs),
        "predicted": trial.predicted,
        "source": trial.source,
        "num_samples": trial.num_samples,
    }


def intermediate_values(trial: SearchTrial) -> dict[int, float]:
    """Number of samples → value: the mean of each round, and of a stopped trial its estimate at the last."""
    if trial.is_stopped:
        return {**trial.rounds, trial.num_samples: trial.value}
    return dict(trial.rounds)


def sampler_attributes(system_attrs: Mapping[str, Any]) -> dict[str, Any]:
    """What a sampler noted, such as a generation; the rest follows from the trial's other fields."""
    return {key: value for key, value in system_attrs.items() if not key.startswith(_OF_OPTUNA)}


def freeze_trial(
    trial: SearchTrial, distributions: Mapping[str, BaseDistribution], front: str | None = None
) -> FrozenTrial:
    """The trial as Optuna keeps it.

    Args:
        trial: the record.
        distributions: see `make_distributions`.
        front: the second objective, a kind of cost; None: the study has one.
    """
    options: dict[str, Any] = {}
    if trial.is_complete:
        options["values"] = objective_values(trial, front)
    elif trial.is_stopped:
        options["value"] = trial.value
    return create_trial(
        state=TrialState[trial.state],
        params=dict(trial.assignment.as_json),
        distributions=dict(distributions),
        user_attrs=user_attributes(trial),
        system_attrs=dict(trial.system_attrs),
        intermediate_values=intermediate_values(trial) if front is None else {},
        constraints=dict(trial.excess),
        **options,
    )


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
    frozen = [freeze_trial(trial, distributions, front) for trial in trials]
    # The folder lies beside the file, so that the move is within one file system.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder, quiet_optuna():
        backend = JournalFileBackend(str(Path(folder) / path.name))
        study = make_study(maximize, front, JournalStorage(backend))
        study.set_user_attr("objective", objective)
        study.set_user_attr("budgets", [budget.text for budget in budgets])
        study.set_user_attr("setup_fingerprint", setup.fingerprint())
        study.add_trials(frozen)
        os.replace(Path(folder) / path.name, path)
