"""Any other Optuna sampler, made to propose only what keeps the budgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from raysearch.records import BitAssignment
from raysearch.search.problem.surrogates import Surrogate
from raysearch.search.samplers.base import make_distributions
from raysearch.search.solvers.budget_solver import BudgetSolver


class FeasibleSampler(BaseSampler):
    """Another sampler whose proposals are repaired downwards, the least surrogate harm first.

    Args:
        inner: the sampler that proposes.
        surrogate: says what a repair harms.
        solver: the limits.
    """

    def __init__(self, inner: BaseSampler, surrogate: Surrogate, solver: BudgetSolver) -> None:
        self._inner = inner
        self._surrogate = surrogate
        self._solver = solver

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All groups at once."""
        return make_distributions(self._solver.space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """What the inner sampler proposes, made feasible."""
        inner_space = self._inner.infer_relative_search_space(study, trial)
        params = self._inner.sample_relative(study, trial, inner_space)
        # What a sampler leaves out of its relative space it samples group by group.
        for name, distribution in search_space.items():
            if name not in params:
                params[name] = self._inner.sample_independent(study, trial, name, distribution)
        space = self._solver.space
        proposal = BitAssignment({name: params[name] for name in space.groups})
        repaired = self._solver.repair(space.choices(proposal), self._surrogate.option_costs)
        return dict(space.assignment(repaired).as_json)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A width for a group that has only one."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Passed on; an enqueued trial, which is not sampled, is born into the present generation."""
        self._inner.before_trial(study, trial)
        if isinstance(self._inner, NSGAIISampler):
            self._inner.get_trial_generation(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Passed on."""
        self._inner.after_trial(study, trial, state, values)
