"""Optuna's side of a trial, and Optuna without its log lines and experimental warnings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from raysearch.records import SearchTrial
from raysearch.search.problem.space import OptionSpace

STUDY_NAME = "raysearch"
_OPTUNAS_OWN = ("constraints", "fixed_params")


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


def make_distributions(space: OptionSpace) -> dict[str, BaseDistribution]:
    """One categorical parameter a group, its choices the bit-widths."""
    groups = space.setup.groups.values()
    return {group.id: CategoricalDistribution(group.bit_widths) for group in groups}


def make_study(maximize: bool, front: str | None, storage: BaseStorage | None = None) -> Study:
    """The study: one objective, or the measured one and the cost `front`, which is minimised."""
    first = StudyDirection.MAXIMIZE if maximize else StudyDirection.MINIMIZE
    if front is None:
        study = optuna.create_study(direction=first, storage=storage, study_name=STUDY_NAME)
    else:
        study = optuna.create_study(
            directions=[first, StudyDirection.MINIMIZE], storage=storage, study_name=STUDY_NAME
        )
        study.set_metric_names(["measured", front])
    return study


def told_values(trial: SearchTrial, front: str | None) -> list[float]:
    """What a complete trial's study is told."""
    return [trial.value] if front is None else [trial.value, trial.costs[front]]


def user_attributes(trial: SearchTrial) -> dict[str, Any]:
    """What the dashboard shows beside the widths."""
    return {
        "costs": dict(trial.costs),
        "predicted": trial.predicted,
        "source": trial.source,
        "num_samples": trial.num_samples,
    }


def reported(trial: SearchTrial) -> dict[int, float]:
    """Samples seen → value: the mean of each round, and of a stopped trial its estimate at the last one."""
    if trial.state == "PRUNED":
        return {**trial.rounds, trial.num_samples: trial.value}
    return dict(trial.rounds)


def own_system_attrs(system_attrs: Mapping[str, Any]) -> dict[str, Any]:
    """What a sampler noted (a generation, say): the rest follows from the trial's other fields."""
    return {key: value for key, value in system_attrs.items() if not key.startswith(_OPTUNAS_OWN)}


def freeze_trial(
    trial: SearchTrial, distributions: Mapping[str, BaseDistribution], front: str | None = None
) -> FrozenTrial:
    """The trial as Optuna keeps it."""
    options: dict[str, Any] = {}
    if trial.state == "COMPLETE":
        options["values"] = told_values(trial, front)
    elif trial.state == "PRUNED":
        options["value"] = trial.value
    return create_trial(
        state=TrialState[trial.state],
        params=dict(trial.assignment.bits),
        distributions=dict(distributions),
        user_attrs=user_attributes(trial),
        system_attrs=dict(trial.system_attrs),
        intermediate_values=reported(trial) if front is None else {},
        constraints=dict(trial.excess),
        **options,
    )
