"""Where the search starts: the answers that need no search, and the baselines it must beat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from raysearch.errors import BudgetError, ConfigError, DataError
from raysearch.records import BitAssignment, Scheme, SensitivityTable
from raysearch.search.problem.solution import Solution
from raysearch.search.problem.space import IntArray, OptionSpace
from raysearch.search.problem.surrogates import SURROGATES, Surrogate, make_surrogate
from raysearch.search.solvers.budget_solver import BudgetSolver
from raysearch.search.solvers.knapsack import FINE_STEPS
from raysearch.search.solvers.local_search import descend
from raysearch.search.solvers.quadratic import solve_quadratic

FRACTIONS = (0.95, 0.9, 0.8, 0.7)
"""Shares of every budget, below the whole, at which each surrogate's optimum is taken."""

MAX_SINGLE, MAX_SEVERAL, MAX_QUADRATIC = 1000, 256, 128
"""Options up to which the optima at those shares are solved exactly, as the required ones are: under one
separable budget, under any others, and with interactions. With more of them the heuristic answers, and is
descended from: that takes a fraction of a second where twenty exact solutions would take many."""


NamedChoices = tuple[str, IntArray]
"""Who proposes choices [L], and the choices."""


@dataclass(frozen=True)
class WarmStart:
    """A named assignment that is measured however good its prediction is.

    Attributes:
        source: its name, the `SearchTrial.source` of its trial.
        choices: feasible choices [L].
        required: measured however few trials are asked for.
    """

    source: str
    choices: IntArray
    required: bool


def warm_starts(
    table: SensitivityTable,
    surrogate: Surrogate,
    solver: BudgetSolver,
    enqueue: Sequence[BitAssignment] = (),
    seed: int = 0,
) -> tuple[list[WarmStart], Solution]:
    """All warm starts, required ones first, and the optimum of the chosen surrogate with its bound.

    Required, several of which may name the same assignment:

    - `quadratic`: the best assignment found of the response form, see `solve_quadratic`;
    - `uniform b`: weights at b bits, or another scheme, activations at the widest uniform width that fits
      (`uniform w4a8` when that is not their widest); `enqueued i`: the user's own;
    - `additive`, `hawq`, `fisher`, `weight-error`, `single-loss`: the optimum of each surrogate that the
      table can give, the chosen one's first; `additive` is the response of each option alone;
    - `greedy`: from the lowest widths upwards, see `BudgetSolver.greedy`.

    Not required: the same surrogates' optima at `FRACTIONS` of every budget (`quadratic 95%`, `hawq 95%`, …),
    the tightest last; exact up to `MAX_SINGLE`, `MAX_SEVERAL` and `MAX_QUADRATIC` options.

    Args:
        table: what every option does alone and in pairs.
        surrogate: the chosen one.
        solver: the limits.
        enqueue: the user's own assignments.
        seed: of the quadratic solver's noise.

    Raises:
        BudgetError: an enqueued assignment exceeds a budget.
        PlacementError: an enqueued assignment does not fit the setup, or breaks its width pairs.
    """
    required, optimum = required_starts(table, surrogate, solver, enqueue, seed)
    response = _response(table, surrogate)
    tightened = _tightened(solver, response, _additive_surrogates(table, surrogate), seed)
    starts = [WarmStart(source, choices, True) for source, choices in required]
    starts += [WarmStart(source, choices, False) for source, choices in tightened]
    return starts, optimum


def required_starts(
    table: SensitivityTable,
    surrogate: Surrogate,
    solver: BudgetSolver,
    enqueue: Sequence[BitAssignment] = (),
    seed: int = 0,
) -> tuple[list[NamedChoices], Solution]:
    """The required ones of `warm_starts` and the optimum of the chosen surrogate; raises what that raises.

    Args:
        table: what every option does alone and in pairs.
        surrogate: the chosen one.
        solver: the limits.
        enqueue: the user's own assignments.
        seed: of the quadratic solver's noise.
    """
    fine = solver.scaled(1.0, FINE_STEPS)
    additive = _additive_surrogates(table, surrogate)
    optima = {name: fine.exact(score.option_costs) for name, score in additive.items()}
    baselines = [*_uniforms(solver), *_enqueued(solver, enqueue)]
    baselines += [(name, optimum.choices) for name, optimum in optima.items()]
    baselines.append(("greedy", solver.greedy(surrogate.option_costs)))
    response = _response(table, surrogate)
    best = solve_quadratic(response, fine, [choices for _, choices in baselines], seed=seed)
    optimum = best if surrogate.gram is not None else optima[surrogate.name]
    return [("quadratic", best.choices), *baselines], optimum


def _response(table: SensitivityTable, chosen: Surrogate) -> Surrogate:
    return chosen if chosen.gram is not None else make_surrogate("response", table, chosen.space)


def distinct(starts: Sequence[WarmStart]) -> list[WarmStart]:
    """The first of each assignment."""
    firsts: dict[bytes, WarmStart] = {}
    for start in starts:
        firsts.setdefault(start.choices.tobytes(), start)
    return list(firsts.values())


def schedule(starts: Sequence[WarmStart]) -> dict[int, WarmStart]:
    """Trial number → warm start: the required ones first, then every second trial one of the others.

    So a search of few trials is not used up by them: beyond the required ones, half of its trials at least
    are the sampler's. The plan does not depend on the number of trials, so a search can be continued.
    """
    required = [start for start in starts if start.required]
    others = [start for start in starts if not start.required]
    plan = dict(enumerate(required))
    for place, start in enumerate(others):
        plan[len(required) + 2 * place + 1] = start
    return plan


def _additive_surrogates(table: SensitivityTable, chosen: Surrogate) -> dict[str, Surrogate]:
    """Name of a warm start → the surrogate whose additive costs it optimises, the chosen one first."""
    surrogates = {}
    for name in sorted(SURROGATES, key=lambda name: name != chosen.name):
        source = "additive" if name == "response" else name
        try:
            surrogates[source] = make_surrogate(name, table, chosen.space)
        except (ConfigError, DataError):
            continue  # traces of another estimator, or not finite
    return surrogates


def _tightened(
    solver: BudgetSolver, response: Surrogate, additive: dict[str, Surrogate], seed: int
) -> Iterator[tuple[str, IntArray]]:
    """The same optima at shares of every budget, and the best of what descends from them."""
    num_options = solver.space.valid.size
    for fraction in FRACTIONS:
        try:
            scaled = solver.scaled(fraction, FINE_STEPS)
        except BudgetError:
            continue  # the lowest assignment needs more than this share
        is_exact = num_options <= (MAX_SINGLE if scaled.is_single else MAX_SEVERAL)
        optima = {}
        for name, surrogate in additive.items():
            costs = surrogate.option_costs
            optima[name] = scaled.exact(costs).choices if is_exact else scaled.heuristic(costs)
        ends = [descend(response, scaled, choices) for choices in optima.values()]
        if num_options <= MAX_QUADRATIC:
            ends.append(solve_quadratic(response, scaled, ends, seed=seed).choices)
        best = int(np.argmin(response.predict(np.stack(ends))))
        yield f"quadratic {fraction:.0%}", ends[best]
        for name, choices in optima.items():
            yield f"{name} {fraction:.0%}", choices


def _enqueued(solver: BudgetSolver, assignments: Iterable[BitAssignment]) -> Iterator[tuple[str, IntArray]]:
    """The user's own assignments.

    Raises:
        BudgetError: one exceeds a budget.
    """
    for index, assignment in enumerate(assignments):
        choices = solver.space.choices(assignment)
        if not solver.is_feasible(choices):
            assignment.check_pairs(solver.space.setup)
            budgets = ", ".join(dict.fromkeys(limit.text for limit in solver.limits))
            raise BudgetError(f"the enqueued assignment {index} exceeds the budget {budgets}.")
        yield f"enqueued {index}", choices


def _uniforms(solver: BudgetSolver) -> Iterator[tuple[str, IntArray]]:
    """Every uniform weight scheme that fits, with the widest uniform activation width that fits with it."""
    space = solver.space
    weight_schemes = _schemes_of(space, is_weight=True)
    activation_widths = _schemes_of(space, is_weight=False)
    for weight in weight_schemes:
        uniform = BitAssignment.uniform(space.setup, weight)
        choices = space.choices(uniform)
        if solver.is_feasible(choices):
            yield f"uniform {weight}", choices
            continue
        for activation in reversed(activation_widths):
            choices = space.choices(_with_activations(space, uniform, activation))
            if solver.is_feasible(choices):
                yield f"uniform w{weight}a{activation}", choices
                break


def _schemes_of(space: OptionSpace, is_weight: bool) -> list[Scheme]:
    """All schemes that weights, or activations, may take, ascending."""
    rows = np.flatnonzero(space.is_weight == is_weight)
    return sorted({scheme for row in rows for scheme in space.allowed[row]})


def _with_activations(space: OptionSpace, uniform: BitAssignment, width: Scheme) -> BitAssignment:
    """The assignment with every activation group at its width nearest to one, the lower one on a tie."""
    schemes = dict(uniform.schemes)
    for row in np.flatnonzero(~space.is_weight):
        schemes[space.groups[row]] = width.nearest(space.allowed[row])
    return BitAssignment(schemes)
