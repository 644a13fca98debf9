"""The knapsack-Thompson sampler: what is believed of each option is drawn, and the draw decoded exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from raysearch.records import BitAssignment
from raysearch.search.problem.space import FloatArray, IntArray
from raysearch.search.problem.surrogates import Surrogate
from raysearch.search.samplers.base import WholeAssignmentSampler
from raysearch.search.solvers.budget_solver import SMALL_SPACE, BudgetSolver
from raysearch.search.solvers.local_search import descend

MAX_TRIES = 20


class KnapsackThompsonSampler(WholeAssignmentSampler):
    """Thompson sampling over relative corrections of the surrogate's option costs, decoded exactly.

    The measured value is modelled as y = a·(m(x) + φ(x)·δ) with m the surrogate, φ_o(x) = c_o for each
    chosen option o (c its additive cost) and δ ~ N(0, σ²I): every option's cost may be off by a factor. A
    draw θ of the posterior of δ gives the costs c·(1 + θ); decoding them, and for a surrogate with
    interactions descending on m + Σ c·θ from there, gives a feasible proposal. The first draw is tempered
    by one half; a proposal that was used before is drawn again with more noise. The unit a is the slope
    of the measured values of the additive warm starts over their predictions.

    A proposal depends on nothing but (seed, trial number, finished and running trials), bit for bit.

    What it keeps between asks only saves time. One ask of 54 groups × 4 widths: see benchmarks/study.py.

    Args:
        surrogate: the prior.
        solver: the limits.
        seed: the run's seed.
        sigma: σ, the prior's relative standard deviation.
        levels: solvers with tighter limits, taken in turn by trial number, for a whole front; default: the
            limits alone.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        solver: BudgetSolver,
        seed: int,
        sigma: float = 0.6,
        levels: Sequence[BudgetSolver] = (),
    ) -> None:
        super().__init__(solver.space)
        self._surrogate = surrogate
        self._solver = solver
        self._seed = seed
        self._sigma = sigma
        self._levels = tuple(levels) or (solver,)
        self._costs = np.maximum(surrogate.option_costs, 0.0)
        self._optimum = solver.heuristic(self._costs)
        total = solver.space.total(self._costs, self._optimum)
        self._unit = max(total, 1e-9 * float(self._costs.max()), 1e-300)
        # A group with one width needs no correction.
        has_choice = surrogate.space.valid.sum(axis=1, keepdims=True) > 1
        self._free = np.flatnonzero(surrogate.space.valid & has_choice)
        # The posterior of the last ask, with the numbers of the trials that it rests on.
        self._last: tuple[list[int], tuple[FloatArray, FloatArray]] | None = None
        self._choices: dict[int, IntArray] = {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A feasible scheme for every group."""
        others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number and t.params]
        used = {self._choices_of(other).tobytes() for other in others}
        if not used:
            return dict(self._space.assignment(self._optimum).as_json)
        maximize = study.directions[0] == StudyDirection.MAXIMIZE
        mean, factor = self._posterior_of([t for t in others if t.state in _MEASURED], maximize)
        solver = self._levels[trial.number % len(self._levels)]
        rng = np.random.default_rng([self._seed, trial.number])
        choices = self._optimum
        for attempt in range(MAX_TRIES):
            noise = (0.5 + 0.25 * attempt) * (factor @ rng.standard_normal(len(mean)))
            choices = self._solve(solver, mean + noise)
            if choices.tobytes() not in used:
                break
        else:
            choices = self._unused(used, choices)
        return dict(self._space.assignment(choices).as_json)

    def _solve(self, solver: BudgetSolver, corrections: FloatArray) -> IntArray:
        """The best choices for drawn relative corrections of the free options' costs."""
        theta = np.zeros_like(self._costs)
        # Rounded, so that the last bits of another linear algebra library do not matter.
        np.put(theta, self._free, np.round(corrections, 9))
        choices = solver.heuristic(self._costs / self._unit * (1 + theta))
        if self._surrogate.gram is None:
            return choices
        return descend(self._surrogate, solver, choices, extra=self._costs * theta)

    def _posterior_of(self, done: list[FrozenTrial], maximize: bool) -> tuple[FloatArray, FloatArray]:
        """`_posterior`, computed once a batch: the asks of one batch see the same finished trials."""
        numbers = [trial.number for trial in done]
        if self._last is None or self._last[0] != numbers:
            self._last = numbers, self._posterior(done, maximize)
        return self._last[1]

    def _unused(self, used: set[bytes], otherwise: IntArray) -> IntArray:
        """In a small space, the best predicted assignment that is left."""
        feasible = self._solver.feasible_choices(SMALL_SPACE)
        if feasible is None:
            return otherwise
        left = [choices for choices in feasible if choices.tobytes() not in used]
        if not left:
            return otherwise
        best: IntArray = left[int(np.argmin(self._surrogate.predict(np.stack(left))))]
        return best

    def _choices_of(self, trial: FrozenTrial) -> IntArray:
        if trial.number not in self._choices:
            self._choices[trial.number] = self._space.choices(BitAssignment(trial.params))
        return self._choices[trial.number]

    def _posterior(self, done: list[FrozenTrial], maximize: bool) -> tuple[FloatArray, FloatArray]:
        """Mean [Q] of δ and a factor F [Q, Q] of its covariance F·Fᵀ, Q the options that are free."""
        size = len(self._free)
        if not done:
            return np.zeros(size), self._sigma * np.eye(size)
        choices = np.stack([self._choices_of(trial) for trial in done])
        values = np.array([trial.values[0] for trial in done], dtype=np.float64)
        if maximize:
            values = -values
        predicted = self._surrogate.predict(choices) / self._unit
        is_fitted_on = np.array([str(t.user_attrs.get("source", "")).startswith(_FIT_ON) for t in done])
        slope = _slope(values[is_fitted_on], predicted[is_fitted_on] * self._unit)
        target = values / (self._unit * slope) - predicted
        target = target - np.median(target)
        noise = max(0.5 * float(target.var()), 1e-6)
        # Row t holds the costs of the options that trial t chose, in units; only the free ones are corrected.
        features = np.zeros((len(done), self._costs.size))
        chosen_costs = self._space.take(self._costs / self._unit, choices)
        np.put_along_axis(features, self._space.flat(choices), chosen_costs, axis=1)
        features = features[:, self._free]
        precision = np.eye(size) / self._sigma**2 + features.T @ features / noise
        factor = np.linalg.inv(np.linalg.cholesky(precision)).T
        mean = factor @ (factor.T @ (features.T @ target)) / noise
        return mean, factor


_FIT_ON = ("additive", "quadratic")
_MEASURED = (TrialState.COMPLETE, TrialState.PRUNED)


def _slope(values: FloatArray, predicted: FloatArray) -> float:
    """The slope of the values over the predictions; without a positive one, the ratio of their sums."""
    if len(values) >= 2:
        centred = predicted - predicted.mean()
        spread = float(centred @ centred)
        if spread > 0 and (slope := float(centred @ values) / spread) > 0:
            return slope
    total = float(predicted.sum())
    ratio = float(values.sum()) / total if total > 0 else 1.0
    return ratio if ratio > 0 else 1.0
