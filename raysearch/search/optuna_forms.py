"""Optuna's side of a trial, and Optuna without its log lines and experimental warnings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState, create_trial

from raysearch.records import SearchTrial


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


def freeze_trial(trial: SearchTrial, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    """The trial as Optuna keeps it."""
    complete = trial.state == "COMPLETE"
    return create_trial(
        state=TrialState.COMPLETE if complete else TrialState.FAIL,
        value=trial.value if complete else None,
        params=dict(trial.assignment.bits),
        distributions=dict(distributions),
        user_attrs={"costs": dict(trial.costs), "predicted": trial.predicted, "source": trial.source},
        constraints=dict(trial.excess),
    )
