"""Every feasible assignment of a small space, in turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial

from raysearch.errors import ConfigError
from raysearch.search.problem.surrogates import Surrogate
from raysearch.search.samplers.base import WholeAssignmentSampler
from raysearch.search.solvers.budget_solver import SMALL_SPACE, BudgetSolver


class ListingSampler(WholeAssignmentSampler):
    """Every feasible assignment of a small space, the best predicted first.

    Args:
        surrogate: predicts.
        solver: the limits.
        num_trials: trials of the search.

    Raises:
        ConfigError: the space has more assignments than `SMALL_SPACE`, or more feasible ones than trials.
    """

    def __init__(self, surrogate: Surrogate, solver: BudgetSolver, num_trials: int) -> None:
        super().__init__(solver.space)
        feasible = solver.feasible_choices(SMALL_SPACE)
        if feasible is None:
            raise ConfigError(
                f"the sampler 'brute' lists every assignment, and {len(solver.space.groups)} groups have "
                f"more than {SMALL_SPACE}. Admit fewer widths, or use the sampler 'auto'."
            )
        if len(feasible) > num_trials:
            raise ConfigError(
                f"the sampler 'brute' measures all {len(feasible)} assignments within the budget, and "
                f"search.num_trials is {num_trials}; set it to {len(feasible)} or use the sampler 'auto'."
            )
        self._in_order = feasible[np.argsort(surrogate.predict(feasible), kind="stable")]

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The first one that no trial has; the first of all when none is left."""
        others = [t for t in study.get_trials(deepcopy=False) if t.params and t.number != trial.number]
        used = {self._key(other.params) for other in others}
        for choices in self._in_order:
            params = self._space.assignment(choices).as_json
            if self._key(params) not in used:
                return dict(params)
        return dict(self._space.assignment(self._in_order[0]).as_json)

    def _key(self, params: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(params[name] for name in self._space.groups)
