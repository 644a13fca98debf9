"""What the search tried and what it chose."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raysearch.errors import StorageError
from raysearch.records.assignment import BitAssignment

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
    ]
)


@dataclass(frozen=True)
class SearchTrial:
    """One assignment that was measured.

    Attributes:
        number: the trial's number in the study.
        assignment: group id → bit-width.
        costs: kind → cost.
        excess: budget expression → (cost − limit)/limit; all ≤ 0, since every trial is feasible.
        value: the measured divergence, mean per sample; NaN when `state` is "FAIL".
        predicted: what the surrogate predicted.
        source: who proposed it: a warm start's name or the sampler's.
        state: "COMPLETE" or "FAIL".
    """

    number: int
    assignment: BitAssignment
    costs: Mapping[str, float]
    excess: Mapping[str, float]
    value: float
    predicted: float
    source: str
    state: str = "COMPLETE"


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    Attributes:
        best: the trial with the least measured value among the feasible ones.
        trials: all trials in number order.
        front: trials that no other trial beats in both measured value and size, by size.
        lower_bound: the least additive surrogate value any feasible assignment can have.
        reasons: what the winner is compared with: source name → best measured value of that source.
    """

    best: SearchTrial
    trials: tuple[SearchTrial, ...]
    front: tuple[SearchTrial, ...]
    lower_bound: float
    reasons: Mapping[str, float]

    def to_json(self) -> str:
        """`best.json`: the winner, its costs, and what it was compared with."""
        return json.dumps(
            {
                "assignment": dict(self.best.assignment.bits),
                "costs": dict(self.best.costs),
                "excess": dict(self.best.excess),
                "value": self.best.value,
                "predicted": self.best.predicted,
                "trial": self.best.number,
                "source": self.best.source,
                "lower_bound": self.lower_bound,
                "best_value_by_source": dict(self.reasons),
            },
            indent=1,
        )

    @classmethod
    def from_records(cls, best: str, trials: pa.Table, front: pa.Table) -> SearchResult:
        """Read best.json and the two trial tables.

        Raises:
            StorageError: best.json is damaged or names a trial that the table lacks.
        """
        try:
            data = json.loads(best)
            every = trials_from_table(trials)
            winner = next(trial for trial in every if trial.number == data["trial"])
            return cls(
                winner, every, trials_from_table(front), data["lower_bound"], data["best_value_by_source"]
            )
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise StorageError(f"best.json is damaged: {error!r}. Run `raysearch run --resume`.") from error


def trials_to_table(trials: tuple[SearchTrial, ...]) -> pa.Table:
    """One row a trial; assignment, costs and excess as JSON text."""
    rows: list[dict[str, Any]] = [
        {
            "number": trial.number,
            "state": trial.state,
            "value": trial.value,
            "predicted": trial.predicted,
            "source": trial.source,
            "assignment": json.dumps(dict(trial.assignment.bits)),
            "costs": json.dumps(dict(trial.costs)),
            "excess": json.dumps(dict(trial.excess)),
        }
        for trial in trials
    ]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def trials_from_table(table: pa.Table) -> tuple[SearchTrial, ...]:
    """Read what `trials_to_table` wrote.

    Raises:
        StorageError: a column is missing or holds no JSON.
    """
    try:
        return tuple(
            SearchTrial(
                number=row["number"],
                assignment=BitAssignment(json.loads(row["assignment"])),
                costs=json.loads(row["costs"]),
                excess=json.loads(row["excess"]),
                value=row["value"],
                predicted=row["predicted"],
                source=row["source"],
                state=row["state"],
            )
            for row in table.to_pylist()
        )
    except (KeyError, ValueError, TypeError) as error:
        raise StorageError(f"trials.parquet is damaged: {error!r}. Start the run anew.") from error
