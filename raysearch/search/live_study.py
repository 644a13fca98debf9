"""The trials of a search in a user's own Optuna storage, while it goes on."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.study import Study

from raysearch.callbacks import Callback
from raysearch.config import SearchConfig
from raysearch.errors import ConfigError
from raysearch.records import Budget, QuantizerSetup, SearchTrial
from raysearch.search.optuna_bridge import freeze_trial, make_study, quiet_optuna
from raysearch.search.problem.space import OptionSpace
from raysearch.search.samplers.base import make_distributions

_FINGERPRINT = "setup_fingerprint"


class LiveStudy(Callback):
    """Follows a run: its study has the run's name and gets every trial with the time of its batch.

    The search reads nothing of it, and a storage that fails is left out as any callback.

    Args:
        run_id: the name of the study; one that is there goes on.
        setup: what the trials are of.
        budgets: what they keep.
        search: names the storage.

    Raises:
        ConfigError: the storage cannot be used, or has a study of that name of something else.
    """

    def __init__(
        self, run_id: str, setup: QuantizerSetup, budgets: Sequence[Budget], search: SearchConfig
    ) -> None:
        self._distributions = make_distributions(OptionSpace(setup))
        self._front = search.front_kind
        self._told = datetime.datetime.now()
        attributes = {
            "objective": search.measured,
            "budgets": [budget.text for budget in budgets],
            _FINGERPRINT: setup.fingerprint(),
        }
        try:
            self._study = self._open(run_id, search)
            before = self._study.user_attrs.get(_FINGERPRINT, setup.fingerprint())
            if before == setup.fingerprint():
                for name, value in attributes.items():
                    self._study.set_user_attr(name, value)
            self._next = len(self._study.get_trials(deepcopy=False))
        except Exception as error:
            # Of SQLAlchemy and the driver of a database come errors of any kind, whose texts, which a chained
            # error would show, may have the password.
            raise ConfigError(
                f"search.storage cannot be used by Optuna ({type(error).__name__}); it takes a URL of "
                "SQLAlchemy such as sqlite:///trials.db, whose driver is installed, and must be writable."
            ) from None
        if before != setup.fingerprint():
            raise ConfigError(
                f"the study '{run_id}' of search.storage is of another model or other options; take another "
                "run id."
            )

    def _open(self, run_id: str, search: SearchConfig) -> Study:
        with quiet_optuna():
            storage = optuna.storages.get_storage(search.storage)
            return make_study(search.maximize, search.front_kind, storage, name=run_id)

    def on_start(self, run_id: str, uri: str, settings: Mapping[str, Any]) -> None:
        """Say where the run is."""
        self._study.set_user_attr("run", uri)

    def on_stage(self, stage: str, seconds: float) -> None:
        """What was before the search is no trial's time."""
        self._told = datetime.datetime.now()

    def on_trial(self, trial: SearchTrial, objective: str) -> None:
        """Add it, unless the study of a run that goes on has it."""
        if trial.number < self._next:
            return
        frozen = freeze_trial(trial, self._distributions, self._front)
        now = datetime.datetime.now()
        frozen.datetime_start, frozen.datetime_complete = self._told, now
        self._told = now
        with quiet_optuna():
            self._study.add_trial(frozen)
        self._next += 1
