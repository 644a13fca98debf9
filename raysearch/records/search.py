"""What the search tried and what it chose."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NotRequired

import pyarrow as pa
from typing_extensions import TypedDict

from raysearch.errors import PlacementError, StorageError
from raysearch.records.assignment import BitAssignment
from raysearch.records.setup import QuantizerSetup
from raysearch.records.typed_json import Count, read_json
from raysearch.records.typed_tables import checked_table

_SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("state", pa.string()),
        ("value", pa.float64()),
        ("predicted", pa.float64()),
        ("source", pa.string()),
        ("assignment", pa.string()),
        ("costs", pa.string()),
        ("excess", pa.string()),
        ("num_samples", pa.int64()),
        ("rounds", pa.string()),
        ("system_attrs", pa.string()),
    ]
)
_ADDED = {"num_samples": 0, "rounds": "{}", "system_attrs": "{}"}
"""Columns that tables of older runs lack, and what they mean there."""


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
    def from_records(cls, best: str, trials: pa.Table, front: pa.Table) -> SearchResult:
        """Read best.json and the two trial tables.

        Args:
            best: text of best.json.
            trials: all trials.
            front: the front's.

        Raises:
            StorageError: best.json is damaged or names a trial that the table lacks.
        """
        data = read_json(_BestForm, best, "best.json")
        every = trials_from_table(trials)
        numbered = {trial.number: trial for trial in every}
        number = data["trial"]
        if number not in numbered or not numbered[number].is_complete:
            raise StorageError(
                f"best.json is damaged: its trial {number} is no complete one of the {len(every)} in "
                f"trials.parquet."
            )
        winner = numbered[number]
        if winner.assignment.as_json != data["assignment"]:
            raise StorageError(f"best.json is damaged: trial {number} has another assignment.")
        # JSON knows no NaN: a correlation or a gap that does not exist is null.
        agreement = {name: _number_or_nan(value) for name, value in data.get("agreement", {}).items()}
        return cls(
            best=winner,
            trials=every,
            front=trials_from_table(front, "front.parquet"),
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


def trials_to_table(trials: tuple[SearchTrial, ...]) -> pa.Table:
    """One row a trial; assignment, costs and excess as JSON text."""
    rows = [_row_of(trial) for trial in trials]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _row_of(trial: SearchTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": str(trial.state),
        "value": trial.value,
        "predicted": trial.predicted,
        "source": trial.source,
        "assignment": json.dumps(trial.assignment.as_json),
        "costs": json.dumps(dict(trial.costs)),
        "excess": json.dumps(dict(trial.excess)),
        "num_samples": trial.num_samples,
        "rounds": json.dumps(dict(trial.rounds)),
        "system_attrs": json.dumps(dict(trial.system_attrs)),
    }


def trials_from_table(table: pa.Table, file: str = "trials.parquet") -> tuple[SearchTrial, ...]:
    """Read what `trials_to_table` wrote; `file` is what messages call it.

    Raises:
        StorageError: a column is missing, of another type, or holds no JSON of its form.
    """
    checked_table(table, _SCHEMA, file, _ADDED)
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    for name, value in _ADDED.items():
        columns.setdefault(name, [value] * table.num_rows)
    for name, form in _TEXTS.items():
        columns[name] = _objects(form, columns[name], f"the column '{name}' of {file}")
    trials: list[SearchTrial] = []
    for values in zip(*(columns[name] for name in _SCHEMA.names), strict=True):
        row = dict(zip(_SCHEMA.names, values, strict=True))
        try:
            trials.append(_trial_of(row))
        except (ValueError, PlacementError) as error:
            text = str(error).rstrip(".")
            raise StorageError(f"{file} is damaged in the trial {row['number']}: {text:.300}.") from error
    return tuple(trials)


_TEXTS: Mapping[str, Any] = {
    "assignment": dict[str, int | str],
    "costs": dict[str, float],
    "excess": dict[str, float],
    "rounds": dict[str, float],
    "system_attrs": dict[str, Any],
}
"""The columns of JSON objects, and what is in those."""


def _objects(form: Any, texts: list[str], where: str) -> list[Any]:
    """The JSON objects of a column, read at once: each alone takes longer to begin than to end."""
    objects: list[Any] = read_json(list[form], f"[{','.join(texts)}]", where)
    if len(objects) != len(texts):
        raise StorageError(f"{where} is damaged: {len(texts)} cells hold {len(objects)} objects.")
    return objects


def _trial_of(row: Mapping[str, Any]) -> SearchTrial:
    # The keys of a JSON object are texts.
    rounds = {int(num_samples): mean for num_samples, mean in row["rounds"].items()}
    state, assignment = TrialState(row["state"]), BitAssignment(row["assignment"])
    trial = SearchTrial(**{**row, "assignment": assignment, "state": state, "rounds": rounds})
    if trial.number < 0 or (not trial.has_failed and not math.isfinite(trial.value)):
        raise ValueError(f"the value of a trial that is {trial.state} is {trial.value}")
    return trial
