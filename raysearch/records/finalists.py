"""The search's best assignments after a short training each, and which of them is best then."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from raysearch.errors import StorageError
from raysearch.records.results import EpochMetrics
from raysearch.records.search import SearchResult, SearchTrial


@dataclass(frozen=True)
class Finalist:
    """One assignment that was trained.

    Attributes:
        trial: its number in the search.
        value: what the search measured of it.
        history: metrics per epoch on the validation data; the first is of the model before training.
        failure: why its training was given up; "" when it was not.
    """

    trial: int
    value: float
    history: tuple[EpochMetrics, ...]
    failure: str = ""

    def before(self) -> Mapping[str, float]:
        """Its metrics before training; {} where it failed."""
        return self.history[0].metrics if self.history else {}

    def after(self, monitor: str) -> Mapping[str, float]:
        """Its metrics at the epoch with the least monitored value; {} where it failed.

        The epoch before training is one of them, as it is where the winner is trained.
        """
        finite = [entry for entry in self.history if not math.isnan(entry.metrics[monitor])]
        if not finite:
            return {}
        return min(finite, key=lambda entry: entry.metrics[monitor]).metrics


@dataclass(frozen=True)
class Finalists:
    """What the short trainings gave.

    Attributes:
        entries: in the order of the search, its winner first.
        monitor: the validation metric that they are compared by; lower is better.
        epochs: of each training.
        steps: optimizer steps of each, in place of epochs; None where epochs count.
        training_data: digest of the training data, as far as they were looked at.
    """

    entries: tuple[Finalist, ...]
    monitor: str
    epochs: int
    steps: int | None
    training_data: str

    def in_order(self) -> list[Finalist]:
        """Best after training first; equal ones in the order of the search, failed ones last."""
        return sorted(self.entries, key=lambda entry: entry.after(self.monitor).get(self.monitor, math.inf))

    @property
    def chosen(self) -> int:
        """The number of the trial that is best after training."""
        return self.in_order()[0].trial

    @property
    def has_new_order(self) -> bool:
        """Whether training put the finalists into another order than the search did."""
        return [entry.trial for entry in self.in_order()] != [entry.trial for entry in self.entries]

    def describe(self) -> str:
        """One sentence for the notes of the result."""
        first, *_ = self.in_order()
        winner = self.entries[0]
        length = f"{self.epochs} epoch{'s' if self.epochs > 1 else ''}"
        if self.steps is not None:
            length = f"{self.steps} steps"
        reached = f"validation {self.monitor} {first.after(self.monitor)[self.monitor]:.4g}"
        text = f"Of {len(self.entries)} finalists, trained for {length} each, "
        if first is winner:
            change = "changed" if self.has_new_order else "did not change"
            rest = f"the order of the others {change}"
            text += f"the search's best, trial {first.trial}, stayed the best ({reached}), and {rest}"
        else:
            other = winner.after(self.monitor).get(self.monitor, math.nan)
            text += (
                f"trial {first.trial} is the best ({reached}), before the search's best, trial "
                f"{winner.trial} ({other:.4g}): the order changed"
            )
        failed = ", ".join(str(entry.trial) for entry in self.entries if entry.failure)
        return f"{text}; lost: {failed}" if failed else text

    def rows(self) -> tuple[dict[str, Any], ...]:
        """The finalists as plain values, best after training first."""
        places = {entry.trial: place for place, entry in enumerate(self.entries, start=1)}
        return tuple(
            {
                "trial": entry.trial,
                "place": places[entry.trial],
                "value": entry.value,
                "before": dict(entry.before()),
                "after": dict(entry.after(self.monitor)),
                "failure": entry.failure,
            }
            for entry in self.in_order()
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Finalists:
        """Read what JSON made of it.

        Raises:
            StorageError: there is no finalist, or one lacks what they are compared by.
        """
        entries = []
        for entry in values["entries"]:
            history = tuple(EpochMetrics(**epoch) for epoch in entry["history"])
            entries.append(Finalist(**{**entry, "history": history}))
        record = cls(**{**values, "entries": tuple(entries)})
        metrics = [epoch.metrics for entry in record.entries for epoch in entry.history]
        if not metrics or any(record.monitor not in values for values in metrics):
            raise StorageError(
                f"finalists.json is damaged: nothing says the {record.monitor:.50} of each of its "
                f"{len(record.entries)} finalists."
            )
        return record

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def chosen_trial(search: SearchResult, finalists: Finalists | None) -> SearchTrial:
    """The trial whose assignment is deployed: the best finalist, else the winner of the search.

    Args:
        search: all trials.
        finalists: what short trainings gave, where there were any.
    """
    if finalists is None:
        return search.best
    return next(trial for trial in search.trials if trial.number == finalists.chosen)
