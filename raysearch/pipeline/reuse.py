"""A run that starts from an earlier one: which of its records still fit, and taking them over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raysearch.artifacts import RunStore, codecs
from raysearch.artifacts.run_record import STARTED, first_difference
from raysearch.config.training import GROUP_AND_LIFE
from raysearch.errors import BudgetError, ConfigError, StorageError
from raysearch.pipeline.finalists import digest_of_training_data
from raysearch.pipeline.inputs import Inputs
from raysearch.pipeline.pipeline import (
    CALIBRATION,
    FINALISTS,
    REFINEMENT,
    ROUNDING,
    SEARCH,
    SENSITIVITY,
    Stage,
)
from raysearch.records import CostModel, Reused, SearchTrial
from raysearch.records.costs.budget import excesses

STAGES: tuple[Stage[Any], ...] = (
    CALIBRATION,
    ROUNDING,
    SENSITIVITY,
    SEARCH,
    FINALISTS,
    REFINEMENT,
)
"""The stages whose records can be taken over, in the order of the walk; what comes after is made anew.

Training is: of its data only a few batches have a fingerprint, so nothing would tell that the others are.
"""

FINALISTS_ONLY = ("search.finalists_trained", "search.finalists_epochs", "search.finalists_steps")
"""Settings of the section `search` on which the search does not depend."""

LONG_TRAINING_ONLY = tuple(f"training.{name}" for name in ("epochs", "steps", "patience", *GROUP_AND_LIFE))
"""Settings of the section `training` on which the short trainings of finalists do not depend."""

REFINING = ("rounding.refine", "rounding.refine_steps", "rounding.refine_learning_rate")
"""Settings of the section `rounding` that only the refinement of the winner depends on."""


@dataclass(frozen=True)
class EarlierRun:
    """The run that another one starts from.

    Attributes:
        store: its folder.
        trial: number of the trial that is taken instead of its winner; None takes the search as it is, or
            searches again where the budget or a setting of the search is another.
    """

    store: RunStore
    trial: int | None = None

    @property
    def task(self) -> str:
        """The factory of its task.

        Raises:
            ConfigError: it was started with a Task object.
        """
        task = str(self.store.open()["config"]["task"])
        if ":" not in task:
            raise ConfigError(
                f"the run '{self.store.run_id}' was started with a Task object ({task}); pass it again as "
                "the task."
            )
        return task

    @property
    def budget(self) -> tuple[str, ...]:
        """Its budget, as given."""
        return tuple(self.store.open()["config"]["budget"])

    @property
    def as_started(self) -> dict[str, Any]:
        """What the new run's record says of it: it is resumed from the same one, or not at all."""
        return {"run_id": self.store.run_id, "trial": self.trial}

    @property
    def settings(self) -> dict[str, Any]:
        """Its settings, as plain values."""
        record = self.store.open()["config"]
        settings = {name: value for name, value in record.items() if name not in STARTED}
        # A run of before there was a choice.
        settings.setdefault("rounding", {"method": "nearest"})
        return settings

    def check(self, config: Mapping[str, Any], inputs: Inputs, open_settings: Sequence[str] = ()) -> None:
        """Refuse to start from a run of which nothing fits, before anything is computed.

        Args:
            config: the record of the new run.
            inputs: the new run's; a taken trial must meet their budgets.
            open_settings: dotted settings of the new run that are not known yet.

        Raises:
            ConfigError: the first record does not fit, or with `trial` the search does not; names the first
                field that differs.
            BudgetError: the taken trial exceeds a budget.
            StorageError: the run has no such trial.
        """
        last = CALIBRATION if self.trial is None else SEARCH
        if last in self._fitting(config, inputs, open_settings):
            trial = self._taken_trial()
            if trial is not None:
                _check_budgets(trial, inputs)
            return
        reason = self._difference(last, config, inputs, open_settings)
        if not reason:
            reason = "it has not come so far"
        what = "nothing" if self.trial is None else f"trial {self.trial}"
        raise ConfigError(
            f"{what} of the run '{self.store.run_id}' can be taken over: {reason}. Set it back, or start "
            f"without --from."
        )

    def take_over(self, store: RunStore, config: Mapping[str, Any], inputs: Inputs) -> None:
        """Save the records that fit as those of a new run, and what they are in `reused.json`.

        Args:
            store: of the new run; where it was resumed after this, nothing is left to do.
            config: its record, with the device in force.
            inputs: as `check` had them.

        Raises:
            ConfigError: nothing fits now that the device is known, see `check`.
            StorageError: a record cannot be read or written.
        """
        if store.has(codecs.REUSED):
            return
        self.check(config, inputs)
        fitting = self._fitting(config, inputs)
        trial = self._taken_trial()
        if trial is not None:
            # What follows the search is of its own winner.
            fitting = [stage for stage in fitting if stage not in (FINALISTS, REFINEMENT)]
        for stage in fitting:
            record = self.store.load(stage.record)
            if stage is SEARCH and trial is not None:
                record = replace(record, best=trial)
            if stage is SEARCH and self.store.has(codecs.LEAST_COST):
                least = self.store.load(codecs.LEAST_COST)
                if trial is not None:
                    least = least.taken(trial.costs[least.kind], trial.value)
                store.save(codecs.LEAST_COST, least)
            store.save(stage.record, record)
        number = None if trial is None else trial.number
        store.save(codecs.REUSED, Reused(self.store.run_id, tuple(stage.name for stage in fitting), number))

    def _taken_trial(self) -> SearchTrial | None:
        if self.trial is None:
            return None
        trials = {trial.number: trial for trial in self.store.load(codecs.SEARCH).trials}
        trial = trials.get(self.trial)
        if trial is None or not trial.is_complete:
            complete = sorted(number for number, other in trials.items() if other.is_complete)
            raise StorageError(
                f"the run '{self.store.run_id}' has no trial {self.trial} that was measured on all samples; "
                f"it has {', '.join(map(str, complete))}."
            )
        return trial

    def _fitting(
        self, config: Mapping[str, Any], inputs: Inputs, open_settings: Sequence[str] = ()
    ) -> list[Stage[Any]]:
        """The stages, in order, whose records are those that the new run would compute."""
        fitting: list[Stage[Any]] = []
        for stage in STAGES:
            if self._difference(stage, config, inputs, open_settings):
                break
            if self.store.has(stage.record):
                fitting.append(stage)
            elif not _is_left_out(stage, config):
                break
        return fitting

    def _difference(
        self,
        last: Stage[Any],
        config: Mapping[str, Any],
        inputs: Inputs,
        open_settings: Sequence[str],
    ) -> str:
        """The first thing on which a stage depends that differs; "" where none does."""
        record = self.store.open()
        names = list(_depends_on(last, config))
        ignore = [*open_settings, *LONG_TRAINING_ONLY]
        if last not in (FINALISTS, REFINEMENT):
            ignore += FINALISTS_ONLY
        if last is not REFINEMENT:
            ignore += REFINING
        if self.trial is not None:
            ignore.append("budget")
        earlier, now = ({name: values.get(name) for name in names} for values in (record["config"], config))
        # The settings first: another number of samples makes another fingerprint too, which says less.
        difference = first_difference(earlier, now, ignore)
        if difference is None:
            hashes = record.get("fingerprints", {})
            difference = first_difference({"fingerprints": hashes}, {"fingerprints": inputs.fingerprints})
        if difference is None and last is FINALISTS and self.store.has(codecs.FINALISTS):
            difference = self._difference_of_training_data(inputs)
        return difference or ""

    def _difference_of_training_data(self, inputs: Inputs) -> str | None:
        before = self.store.load(codecs.FINALISTS).training_data
        now = digest_of_training_data(inputs)
        return first_difference({"training data": before}, {"training data": now})


def _depends_on(last: Stage[Any], config: Mapping[str, Any]) -> Iterator[str]:
    """The sections of a run's record on which a stage and those before it depend.

    Args:
        last: the stage.
        config: the record of the new run.
    """
    for stage in STAGES:
        if stage is not FINALISTS or not _is_left_out(stage, config):
            yield from stage.settings
        if stage is last:
            return


def _is_left_out(stage: Stage[Any], config: Mapping[str, Any]) -> bool:
    """Whether a run with these settings has no such stage."""
    rounding = config.get("rounding", {"method": "nearest"})
    if stage is ROUNDING:
        return bool(rounding["method"] == "nearest")
    if stage is FINALISTS:
        return not config["search"].get("finalists_trained")
    return stage is REFINEMENT and (rounding["method"] == "nearest" or not rounding["refine"])


def _check_budgets(trial: SearchTrial, inputs: Inputs) -> None:
    excess = excesses(inputs.budgets, CostModel(inputs.setup), trial.costs)
    for text, value in excess.items():
        if value > 0:
            raise BudgetError(
                f"trial {trial.number} exceeds the budget '{text}' by {value:.2%}; give one that it meets, "
                "or another trial."
            )
