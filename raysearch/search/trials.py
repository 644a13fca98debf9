"""The one place where a trial's record is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raysearch.records import (
    BitAssignment,
    Budget,
    CostModel,
    SearchTrial,
    SensitivityTable,
    TrialState,
    excesses,
)
from raysearch.search.evaluator import Measured
from raysearch.search.problem.space import OptionSpace
from raysearch.search.problem.surrogates import Surrogate, make_surrogate


@dataclass(frozen=True)
class TrialMaker:
    """Makes records of measured assignments: their costs, excesses and predictions beside the value.

    Attributes:
        space: the options.
        model: the costs.
        budgets: the user's, whose excess a trial states.
        surrogate: what predicts.
    """

    space: OptionSpace
    model: CostModel
    budgets: tuple[Budget, ...]
    surrogate: Surrogate

    @classmethod
    def of(
        cls, table: SensitivityTable, model: CostModel, budgets: Sequence[Budget], surrogate: str
    ) -> TrialMaker:
        """With the surrogate of a name, from the table.

        Args:
            table: what every option does.
            model: the costs of the same setup.
            budgets: the user's.
            surrogate: one of `SURROGATES`.
        """
        space = OptionSpace(model.setup)
        return cls(space, model, tuple(budgets), make_surrogate(surrogate, table, space))

    def make(self, number: int, assignment: BitAssignment, source: str, measured: Measured) -> SearchTrial:
        """The record of a measurement; a value that is not finite is a failure, without rounds.

        Args:
            number: the trial's.
            assignment: what was measured.
            source: who proposed it.
            measured: its value.
        """
        costs = self.model.costs(assignment)
        is_finite = math.isfinite(measured.value)
        state = TrialState.PRUNED if measured.stopped else TrialState.COMPLETE
        return SearchTrial(
            number=number,
            assignment=assignment,
            costs=costs,
            excess=excesses(self.budgets, self.model, costs),
            value=measured.value if is_finite else math.nan,
            predicted=float(self.surrogate.predict(self.space.choices(assignment))),
            source=source,
            state=state if is_finite else TrialState.FAIL,
            num_samples=measured.num_samples,
            rounds=measured.rounds if is_finite else {},
        )
