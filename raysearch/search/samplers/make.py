"""The samplers by name: ours, Optuna's made feasible, the listing of a small space, and the user's own."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from raysearch.errors import ConfigError
from raysearch.records import BitAssignment
from raysearch.search.optuna_bridge import make_distributions
from raysearch.search.problem.surrogates import Surrogate
from raysearch.search.samplers.thompson import KnapsackThompsonSampler
from raysearch.search.solvers.decoder import SMALL_SPACE, Decoder
from raysearch.seeding import derive_seed

SAMPLERS = ("auto", "thompson", "tpe", "nsga2", "gp", "random", "brute")
POPULATION = 24
"""Of NSGA-II: Optuna's 50 would leave most of a search of some hundred trials to chance."""

GP_TRIALS, GP_GROUPS = 100, 60
"""Beyond them one ask of the Gaussian process takes seconds to minutes."""

MakeSampler = Callable[[int], BaseSampler]
"""`make(first trial number of a batch)`: the sampler of the batch."""


def check_sampler(name: str) -> None:
    """Refuse a sampler that is neither known nor "module:Class", and one whose class is not usable.

    Raises:
        ConfigError: says what is allowed.
    """
    if ":" in name:
        _load_class(name)
    elif name not in SAMPLERS:
        raise ConfigError(
            f"the sampler '{name}' is unknown; known: {', '.join(SAMPLERS)}, or module:Class for your own."
        )


def make_samplers(
    name: str,
    surrogate: Surrogate,
    decoder: Decoder,
    seed: int,
    *,
    num_trials: int,
    levels: Sequence[Decoder] = (),
) -> MakeSampler:
    """The maker of each batch's sampler; `auto` is `thompson`.

    Optuna's samplers keep a generator that is no part of the study, so each batch gets a new one, seeded by
    its first trial number: a replayed study then continues as the interrupted one would have.

    Args:
        name: one of `SAMPLERS`, or "module:Class" with a subclass of `optuna.samplers.BaseSampler` that
            takes `seed=`. Its proposals are repaired to keep every budget.
        surrogate: the prior of `thompson`, and what a repair harms least.
        decoder: the limits.
        seed: the run's seed.
        num_trials: trials of the search.
        levels: see `KnapsackThompsonSampler`.

    Raises:
        ConfigError: the name is unknown, the class is not usable, or the space is too large for `brute`.
    """
    check_sampler(name)
    if name in ("auto", "thompson"):
        thompson = KnapsackThompsonSampler(surrogate, decoder, seed, levels=levels)
        return lambda first: thompson
    if name == "brute":
        brute = ListingSampler(surrogate, decoder, num_trials)
        return lambda first: brute
    if name == "gp" and (num_trials > GP_TRIALS or len(decoder.space.groups) > GP_GROUPS):
        warnings.warn(
            f"the sampler 'gp' with {num_trials} trials and {len(decoder.space.groups)} groups will be slow: "
            f"beyond {GP_TRIALS} trials or {GP_GROUPS} groups one ask takes seconds to minutes. 'auto' "
            "takes milliseconds.",
            stacklevel=4,
        )
    build: dict[str, Callable[[int], BaseSampler]] = {
        "tpe": lambda number: TPESampler(seed=number),
        "nsga2": lambda number: NSGAIISampler(seed=number, population_size=POPULATION),
        "gp": lambda number: GPSampler(seed=number, deterministic_objective=True),
        "random": lambda number: RandomSampler(seed=number),
    }
    made = build[name] if name in build else _users(name)

    def of_batch(first: int) -> BaseSampler:
        batch_seed = derive_seed(seed, "search", name, first) % 2**32
        return FeasibleSampler(made(batch_seed), surrogate, decoder)

    return of_batch


class FeasibleSampler(BaseSampler):
    """Another sampler whose proposals are repaired downwards, the least surrogate harm first."""

    def __init__(self, inner: BaseSampler, surrogate: Surrogate, decoder: Decoder) -> None:
        self._inner, self._surrogate, self._decoder = inner, surrogate, decoder

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All groups at once."""
        return make_distributions(self._decoder.space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """What the inner sampler proposes, made feasible."""
        inner = self._inner
        params = inner.sample_relative(study, trial, inner.infer_relative_search_space(study, trial))
        for name, distribution in search_space.items():
            if name not in params:
                params[name] = inner.sample_independent(study, trial, name, distribution)
        space = self._decoder.space
        choices = space.choices(BitAssignment({name: int(params[name]) for name in space.groups}))
        repaired = self._decoder.repair(choices, self._surrogate.option_costs)
        return dict(space.assignment(repaired).bits)

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


class ListingSampler(BaseSampler):
    """Every feasible assignment of a small space, the best predicted first.

    Raises:
        ConfigError: the space has more assignments than `SMALL_SPACE`, or more feasible ones than trials.
    """

    def __init__(self, surrogate: Surrogate, decoder: Decoder, num_trials: int) -> None:
        every = decoder.feasible(SMALL_SPACE)
        if every is None:
            count = len(decoder.space.groups)
            raise ConfigError(
                f"the sampler 'brute' lists every assignment, and {count} groups have more than "
                f"{SMALL_SPACE}. Admit fewer widths, or use the sampler 'auto'."
            )
        if len(every) > num_trials:
            raise ConfigError(
                f"the sampler 'brute' measures all {len(every)} assignments within the budget, and "
                f"search.num_trials is {num_trials}; set it to {len(every)} or use the sampler 'auto'."
            )
        self._space = decoder.space
        self._order = every[np.argsort(surrogate.predict(every), kind="stable")]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All groups at once."""
        return make_distributions(self._space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The first one that no trial has; the first of all when none is left."""
        trials = study.get_trials(deepcopy=False)
        used = {self._key(t.params) for t in trials if t.params and t.number != trial.number}
        for choices in self._order:
            bits = self._space.assignment(choices).bits
            if self._key(bits) not in used:
                return dict(bits)
        return dict(self._space.assignment(self._order[0]).bits)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refuse: an assignment is listed whole.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("pass all distributions to ask(): an assignment is listed whole")

    def _key(self, bits: Any) -> tuple[int, ...]:
        return tuple(bits[name] for name in self._space.groups)


def _users(name: str) -> Callable[[int], BaseSampler]:
    kind = _load_class(name)
    return lambda number: kind(seed=number)


def _load_class(name: str) -> Callable[..., BaseSampler]:
    module_name, _, attribute = name.partition(":")
    try:
        kind = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"the sampler '{name}' cannot be imported: {error}.") from error
    if not (inspect.isclass(kind) and issubclass(kind, BaseSampler)):
        raise ConfigError(f"the sampler '{name}' is no subclass of optuna.samplers.BaseSampler.")
    parameters = inspect.signature(kind).parameters.values()
    if not any(p.name == "seed" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise ConfigError(
            f"the sampler '{name}' takes no seed=, so a resumed search could not go on as it would have; "
            "give its constructor that argument."
        )
    return kind
