"""The knapsack-Thompson sampler: what is believed of each option is drawn, and the draw decoded exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from raysearch.records import BitAssignment
from raysearch.search.optuna_bridge import make_distributions
from raysearch.search.problem.space import FloatArray, IntArray
from raysearch.search.problem.surrogates import Surrogate
from raysearch.search.solvers.decoder import SMALL_SPACE, Decoder
from raysearch.search.solvers.local_search import descend

MAX_TRIES = 20


class KnapsackThompsonSampler(BaseSampler):
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
        decoder: the limits.
        seed: the run's seed.
        sigma: σ, the prior's relative standard deviation.
        levels: decoders with tighter limits, taken in turn by trial number, for a whole front; default: the
            limits alone.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        decoder: Decoder,
        seed: int,
        sigma: float = 0.6,
        levels: Sequence[Decoder] = (),
    ) -> None:
        self._surrogate, self._decoder, self._seed, self._sigma = surrogate, decoder, seed, sigma
        self._levels = tuple(levels) or (decoder,)
        self._costs = np.maximum(surrogate.option_costs, 0.0)
        self._optimum = decoder.decode(self._costs)
        total = float(decoder.space.take(self._costs, self._optimum).sum())
        self._unit = max(total, 1e-9 * float(self._costs.max()), 1e-300)
        # A group with one width needs no correction.
        several = surrogate.space.valid.sum(axis=1, keepdims=True) > 1
        self._free = np.flatnonzero(surrogate.space.valid & several)
        self._kept: tuple[list[int], tuple[FloatArray, FloatArray]] | None = None
        self._choices: dict[int, IntArray] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All groups at once."""
        return make_distributions(self._decoder.space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A feasible bit-width for every group."""
        space = self._decoder.space
        trials = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number and t.params]
        used = {self._choices_of(t).tobytes() for t in trials}
        if not used:
            return dict(space.assignment(self._optimum).bits)
        done = [t for t in trials if t.state in _MEASURED]
        # The asks of one batch see the same finished trials.
        numbers = [t.number for t in done]
        if self._kept is None or self._kept[0] != numbers:
            self._kept = numbers, self._posterior(done, study.directions[0] == StudyDirection.MAXIMIZE)
        mean, spread = self._kept[1]
        decoder = self._levels[trial.number % len(self._levels)]
        rng = np.random.default_rng([self._seed, trial.number])
        costs = self._costs / self._unit
        found = self._optimum
        for attempt in range(MAX_TRIES):
            noise = (0.5 + 0.25 * attempt) * (spread @ rng.standard_normal(len(mean)))
            # Rounded, so that the last bits of another linear algebra library do not matter.
            theta = np.zeros_like(costs)
            np.put(theta, self._free, np.round(mean + noise, 9))
            found = decoder.decode(costs * (1 + theta))
            if self._surrogate.gram is not None:
                found = descend(self._surrogate, decoder, found, extra=self._costs * theta)
            if found.tobytes() not in used:
                break
        else:
            found = self._unused(used, found)
        return dict(space.assignment(found).bits)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refuse: one group alone cannot be made feasible.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("pass all distributions to ask(): a group's width depends on all the others")

    def _unused(self, used: set[bytes], otherwise: IntArray) -> IntArray:
        """In a small space, the best predicted assignment that is left."""
        every = self._decoder.feasible(SMALL_SPACE)
        left: list[IntArray] = (
            [] if every is None else [choices for choices in every if choices.tobytes() not in used]
        )
        if not left:
            return otherwise
        best: IntArray = left[int(np.argmin(self._surrogate.predict(np.stack(left))))]
        return best

    def _choices_of(self, trial: FrozenTrial) -> IntArray:
        if trial.number not in self._choices:
            self._choices[trial.number] = self._decoder.space.choices(BitAssignment(trial.params))
        return self._choices[trial.number]

    def _posterior(self, done: list[FrozenTrial], maximize: bool) -> tuple[FloatArray, FloatArray]:
        """Mean [Q] of δ and a factor F [Q, Q] of its covariance F·Fᵀ, Q the options that are free."""
        size = len(self._free)
        if not done:
            return np.zeros(size), self._sigma * np.eye(size)
        space = self._decoder.space
        choices = np.stack([self._choices_of(t) for t in done])
        values = np.array([t.values[0] for t in done], dtype=np.float64)
        if maximize:
            values = -values
        predicted = self._surrogate.predict(choices) / self._unit
        warm = np.array([str(t.user_attrs.get("source", "")).startswith(_FIT_ON) for t in done])
        target = values / (self._unit * _slope(values[warm], predicted[warm] * self._unit)) - predicted
        target = target - np.median(target)
        noise = max(0.5 * float(target.var()), 1e-6)
        features = np.zeros((len(done), self._costs.size))
        np.put_along_axis(
            features, space.flat(choices), space.take(self._costs / self._unit, choices), axis=1
        )
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
