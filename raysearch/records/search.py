"""What the search tried and what it chose."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NotRequired

from typing_extensions import TypedDict

from raysearch.errors import StorageError
from raysearch.records.assignment import BitAssignment
from raysearch.records.setup import QuantizerSetup
from raysearch.records.typed_json import Count, read_json


class TrialState(StrEnum):
    """How the measurement of an assignment ended; the words are Optuna's."""

    COMPLETE = "COMPLETE"
    """It was measured on all samples."""
    PRUNED = "PRUNED"
    """It was stopped early: worse than the best one with a stated error rate."""
    FAIL = "FAIL"
    """It gave no finite value."""


@dataclass(frozen=True)
class SearchTrial:
    """One assignment that was measured.

    Attributes:
        number: the trial's number in the study.
        assignment: group id → scheme.
        costs: kind → cost.
        excess: budget expression → (cost − limit)/limit; all ≤ 0, since every trial is feasible.
        value: the measured objective, mean per sample; NaN of a failed trial. Of a stopped one the estimate:
            the best one's mean on all samples plus the mean difference on those that were measured.
        predicted: what the surrogate predicted.
        source: who proposed it: a warm start's name or the sampler's.
        state: see `TrialState`.
        num_samples: samples the value rests on; 0 when they were not counted.
        rounds: samples seen → mean on them, for each round of the race.
        system_attrs: what Optuna's sampler noted about the trial and needs again to go on from it.
    """

    number: int
    assignment: BitAssignment
    costs: Mapping[str, float]
    excess: Mapping[str, float]
    value: float
    predicted: float
    source: str
    state: TrialState = TrialState.COMPLETE
    num_samples: int = 0
    rounds: Mapping[int, float] = field(default_factory=dict)
    system_attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether it was measured on all samples."""
        return self.state == TrialState.COMPLETE

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped early, so that its value is an estimate."""
        return self.state == TrialState.PRUNED

    @property
    def has_failed(self) -> bool:
        """Whether it gave no finite value."""
        return self.state == TrialState.FAIL

    @property
    def is_feasible(self) -> bool:
        """Whether it keeps every budget."""
        return all(excess <= 0 for excess in self.excess.values())


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    Attributes:
        best: the complete trial with the best measured value.
        trials: all trials in number order.
        front: complete trials that no other one beats in both measured value and `front_cost`, by cost.
        lower_bound: no feasible assignment is predicted to have less; proven.
        reasons: what the winner is compared with: source name → best measured value of that source.
        agreement: surrogate → Spearman's rank correlation of its predictions with the measured values of
            all complete trials; NaN when one of both is constant.
        objective: what was measured: "divergence", "loss" or a metric's name.
        maximize: whether more is better.
        front_cost: the cost of the front, a key of `SearchTrial.costs`.
        surrogate: what predicts; "" in a run of an earlier version, whose bound is of the additive part.
        gap: how much less, as a share, than the best prediction found another assignment might be predicted
            to have; 0 means that it is proven the least. NaN in a run of an earlier version.
    """

    best: SearchTrial
    trials: tuple[SearchTrial, ...]
    front: tuple[SearchTrial, ...]
    lower_bound: float
    reasons: Mapping[str, float]
    agreement: Mapping[str, float] = field(default_factory=dict)
    objective: str = "divergence"
    maximize: bool = False
    front_cost: str = "size"
    surrogate: str = ""
    gap: float = math.nan

    def margins(self) -> dict[str, float]:
        """Source → by how much the winner is better than the best of that source, in the objective's unit.

        None is negative: every warm start is measured on all samples, and the winner is the best trial.
        """
        sign = -1.0 if self.maximize else 1.0
        return {name: sign * (value - self.best.value) for name, value in self.reasons.items()}

    def uniform_trials(self, setup: QuantizerSetup) -> list[tuple[str, SearchTrial]]:
        """The measured trials within the budgets, all of whose weights have one scheme; best first.

        A weight that cannot have it has the nearest one.

        Returns:
            (its name, such as "uniform 4"; the trial), the best of each scheme.
        """
        groups = [group for group in setup.groups.values() if setup.group_kind(group.id) == "weight"]
        schemes = sorted({scheme for group in groups for scheme in group.schemes})
        sign = -1 if self.maximize else 1
        done = [trial for trial in self.trials if trial.is_complete and trial.is_feasible]
        done.sort(key=lambda trial: (sign * trial.value, trial.costs["size"], trial.number))
        uniform: dict[str, SearchTrial] = {}
        for trial in done:
            for scheme in schemes:
                if all(trial.assignment.schemes[g.id] == scheme.nearest(g.schemes) for g in groups):
                    uniform.setdefault(f"uniform {scheme}", trial)
                    break
        return list(uniform.items())

    def to_json(self) -> str:
        """`best.json`: the winner, its costs, and what it was compared with."""
        return json.dumps(
            {
                "assignment": self.best.assignment.as_json,
                "costs": dict(self.best.costs),
                "excess": dict(self.best.excess),
                "value": self.best.value,
                "predicted": self.best.predicted,
                "trial": self.best.number,
                "source": self.best.source,
                "surrogate": self.surrogate,
                "lower_bound": self.lower_bound,
                "gap": self.gap if math.isfinite(self.gap) else None,
                "objective": self.objective,
                "maximize": self.maximize,
                "front_cost": self.front_cost,
                "best_value_by_source": dict(self.reasons),
                "better_by": self.margins(),
                # JSON knows no NaN: a correlation that does not exist is null.
                "agreement": {k: v if math.isfinite(v) else None for k, v in self.agreement.items()},
            },
            indent=1,
        )

    @classmethod
    def from_records(
        cls, best: str, trials: tuple[SearchTrial, ...], front: tuple[SearchTrial, ...]
    ) -> SearchResult:
        """Read best.json, which goes with the trials and the front.

        Args:
            best: text of best.json.
            trials: all trials.
            front: the front's.

        Raises:
            StorageError: best.json is damaged or names a trial that the table lacks.
        """
        data = read_json(_BestForm, best, "best.json")
        numbered = {trial.number: trial for trial in trials}
        number = data["trial"]
        if number not in numbered or not numbered[number].is_complete:
            raise StorageError(
                f"best.json is damaged: its trial {number} is no complete one of the {len(trials)} in "
                f"trials.parquet."
            )
        winner = numbered[number]
        if winner.assignment.as_json != data["assignment"]:
            raise StorageError(f"best.json is damaged: trial {number} has another assignment.")
        # JSON knows no NaN: a correlation or a gap that does not exist is null.
        agreement = {name: _number_or_nan(value) for name, value in data.get("agreement", {}).items()}
        return cls(
            best=winner,
            trials=trials,
            front=front,
            lower_bound=data["lower_bound"],
            reasons=data["best_value_by_source"],
            agreement=agreement,
            objective=data.get("objective", "divergence"),
            maximize=data.get("maximize", False),
            front_cost=data.get("front_cost", "size"),
            surrogate=data.get("surrogate", ""),
            gap=_number_or_nan(data.get("gap")),
        )


class _BestForm(TypedDict):
    assignment: dict[str, int | str]
    costs: dict[str, float]
    excess: dict[str, float]
    value: float
    predicted: float
    trial: Count
    source: str
    surrogate: NotRequired[str]
    lower_bound: float
    gap: NotRequired[float | None]
    objective: NotRequired[str]
    maximize: NotRequired[bool]
    front_cost: NotRequired[str]
    best_value_by_source: dict[str, float]
    better_by: NotRequired[dict[str, float]]
    agreement: NotRequired[dict[str, float | None]]


def _number_or_nan(value: float | None) -> float:
    return math.nan if value is None else value
