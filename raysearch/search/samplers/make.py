"""The samplers by name: ours, Optuna's made feasible, the listing of a small space, and the user's own.

Another one of Optuna's is one entry of `_OF_OPTUNA`; another one of ours a file beside this one, and one
entry of `_OUR_OWN`. Its name goes into `config.search.SAMPLERS`.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from raysearch.config.search import SAMPLERS
from raysearch.errors import ConfigError
from raysearch.search.problem.surrogates import Surrogate
from raysearch.search.samplers.brute import ListingSampler
from raysearch.search.samplers.feasible import FeasibleSampler
from raysearch.search.samplers.thompson import KnapsackThompsonSampler
from raysearch.search.solvers.budget_solver import BudgetSolver
from raysearch.seeding import derive_seed

POPULATION = 24
"""Of NSGA-II: Optuna's 50 would leave most of a search of some hundred trials to chance."""

GP_TRIALS, GP_GROUPS = 100, 60
"""Beyond them one ask of the Gaussian process takes seconds to minutes."""

MakeSampler = Callable[[int], BaseSampler]
"""`make(first trial number of a batch)`: the sampler of the batch."""


@dataclass(frozen=True)
class SamplerInputs:
    """What a sampler may be made of.

    Attributes:
        surrogate: the prior of `thompson`, and what a repair harms least.
        solver: the limits.
        seed: the run's seed.
        num_trials: trials of the search.
        levels: see `KnapsackThompsonSampler`.
    """

    surrogate: Surrogate
    solver: BudgetSolver
    seed: int
    num_trials: int
    levels: Sequence[BudgetSolver] = ()


def _thompson(inputs: SamplerInputs) -> BaseSampler:
    return KnapsackThompsonSampler(inputs.surrogate, inputs.solver, inputs.seed, levels=inputs.levels)


def _brute(inputs: SamplerInputs) -> BaseSampler:
    return ListingSampler(inputs.surrogate, inputs.solver, inputs.num_trials)


_OUR_OWN: dict[str, Callable[[SamplerInputs], BaseSampler]] = {
    "auto": _thompson,
    "thompson": _thompson,
    "brute": _brute,
}
"""They propose feasible assignments as a function of the study alone, so one serves every batch."""

_OF_OPTUNA: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=POPULATION),
    "gp": lambda seed: GPSampler(seed=seed, deterministic_objective=True),
    "random": lambda seed: RandomSampler(seed=seed),
}


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


def make_samplers(name: str, inputs: SamplerInputs) -> MakeSampler:
    """The maker of each batch's sampler; `auto` is `thompson`.

    Optuna's samplers keep a generator that is no part of the study, so each batch gets a new one, seeded by
    its first trial number: a replayed study then continues as the interrupted one would have.

    Args:
        name: one of `SAMPLERS`, or "module:Class" with a subclass of `optuna.samplers.BaseSampler` that
            takes `seed=`. Its proposals are repaired to keep every budget.
        inputs: what it is made of.

    Raises:
        ConfigError: the name is unknown, the class is not usable, or the space is too large for `brute`.
    """
    check_sampler(name)
    if name in _OUR_OWN:
        sampler = _OUR_OWN[name](inputs)
        return lambda first: sampler
    if name == "gp":
        _warn_if_slow(inputs)
    make_inner = _OF_OPTUNA[name] if name in _OF_OPTUNA else _user_sampler(name)

    def make_for_batch(first: int) -> BaseSampler:
        batch_seed = derive_seed(inputs.seed, "search", name, first) % 2**32
        return FeasibleSampler(make_inner(batch_seed), inputs.surrogate, inputs.solver)

    return make_for_batch


def _warn_if_slow(inputs: SamplerInputs) -> None:
    num_groups = len(inputs.solver.space.groups)
    if inputs.num_trials > GP_TRIALS or num_groups > GP_GROUPS:
        warnings.warn(
            f"the sampler 'gp' with {inputs.num_trials} trials and {num_groups} groups will be slow: beyond "
            f"{GP_TRIALS} trials or {GP_GROUPS} groups one ask takes seconds to minutes. 'auto' takes "
            "milliseconds.",
            stacklevel=5,
        )


def _user_sampler(name: str) -> Callable[[int], BaseSampler]:
    sampler_class = _load_class(name)
    return lambda seed: sampler_class(seed=seed)


def _load_class(name: str) -> Callable[..., BaseSampler]:
    module_name, _, attribute = name.partition(":")
    try:
        sampler_class = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"the sampler '{name}' cannot be imported: {error}.") from error
    if not (inspect.isclass(sampler_class) and issubclass(sampler_class, BaseSampler)):
        raise ConfigError(f"the sampler '{name}' is no subclass of optuna.samplers.BaseSampler.")
    parameters = inspect.signature(sampler_class).parameters.values()
    takes_seed = any(p.name == "seed" or p.kind is p.VAR_KEYWORD for p in parameters)
    if not takes_seed:
        raise ConfigError(
            f"the sampler '{name}' takes no seed=, so a resumed search could not go on as it would have; "
            "give its constructor that argument."
        )
    return sampler_class
