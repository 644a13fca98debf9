"""Where the search starts: the answers that need no search, and the baselines it must beat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from raysearch.errors import BudgetError, ConfigError, DataError
from raysearch.records import BitAssignment, SensitivityTable
from raysearch.search.problem.solution import Solution
from raysearch.search.problem.space import IntArray
from raysearch.search.problem.surrogates import SURROGATES, Surrogate, make_surrogate
from raysearch.search.solvers.decoder import Decoder
from raysearch.search.solvers.knapsack import FINE_STEPS
from raysearch.search.solvers.local_search import descend
from raysearch.search.solvers.quadratic import solve_quadratic

FRACTIONS = (0.95, 0.9, 0.8, 0.7)
"""Shares of every budget, below the whole, at which each surrogate's optimum is taken."""

MAX_SINGLE, MAX_SEVERAL, MAX_QUADRATIC = 1000, 256, 128
"""Options up to which the optima at those shares are solved exactly, as the required ones are: under one
separable budget, under any others, and with interactions; more are decoded, and descended from, which takes
a fraction of a second where twenty exact solutions would take many."""


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
    decoder: Decoder,
    enqueue: Sequence[BitAssignment] = (),
    seed: int = 0,
) -> tuple[list[WarmStart], Solution]:
    """All warm starts, required ones first, and the optimum of the chosen surrogate with its bound.

    Required, several of which may name the same assignment:

    - `quadratic`: the best assignment found of the response form, see `solve_quadratic`;
    - `uniform b`: weights at b bits, activations at the widest uniform width that fits (`uniform w4a8`
      when that is not their widest); `enqueued i`: the user's own;
    - `additive`, `hawq`, `fisher`, `weight-error`, `single-loss`: the optimum of each surrogate that the
      table can give, the chosen one's first; `additive` is the response of each option alone;
    - `greedy`: see `Decoder.greedy`.

    Not required: the same surrogates' optima at `FRACTIONS` of every budget (`quadratic 95%`, `hawq 95%`, …),
    the tightest last; exact up to `MAX_SINGLE`, `MAX_SEVERAL` and `MAX_QUADRATIC` options.

    Raises:
        BudgetError: an enqueued assignment exceeds a budget.
        PlacementError: an enqueued assignment does not fit the setup, or breaks its width pairs.
    """
    fine = decoder.scaled(1.0, FINE_STEPS)
    given = [*_uniforms(decoder), *_enqueued(decoder, enqueue)]
    scores = _scores(table, surrogate)
    optima = {name: fine.optimum(score.option_costs) for name, score in scores.items()}
    given += [(name, found.choices) for name, found in optima.items()]
    given.append(("greedy", decoder.greedy(surrogate.option_costs)))
    response = surrogate if surrogate.gram is not None else make_surrogate("response", table, decoder.space)
    best = solve_quadratic(response, fine, [choices for _, choices in given], seed=seed)
    required = [WarmStart(name, choices, True) for name, choices in [("quadratic", best.choices), *given]]
    tightened = [WarmStart(*start, False) for start in _tightened(decoder, response, scores, seed)]
    return [*required, *tightened], best if surrogate.gram is not None else optima[surrogate.name]


def distinct(starts: Sequence[WarmStart]) -> list[WarmStart]:
    """The first of each assignment."""
    kept: dict[bytes, WarmStart] = {}
    for start in starts:
        kept.setdefault(start.choices.tobytes(), start)
    return list(kept.values())


def schedule(starts: Sequence[WarmStart]) -> dict[int, WarmStart]:
    """Trial number → warm start: the required ones first, then every second trial one of the others.

    So a search of few trials is not used up by them: beyond the required ones, half of its trials at least
    are the sampler's. The plan does not depend on the number of trials, so a search can be continued.
    """
    required = [start for start in starts if start.required]
    others = [start for start in starts if not start.required]
    plan = dict(enumerate(required))
    plan |= {len(required) + 2 * place + 1: start for place, start in enumerate(others)}
    return plan


def _scores(table: SensitivityTable, chosen: Surrogate) -> dict[str, Surrogate]:
    """Name of a warm start → the additive score it is the optimum of, the chosen surrogate's first."""
    found = {}
    for name in sorted(SURROGATES, key=lambda name: name != chosen.name):
        try:
            found["additive" if name == "response" else name] = make_surrogate(name, table, chosen.space)
        except (ConfigError, DataError):
            continue  # traces of another estimator, or not finite
    return found


def _tightened(
    decoder: Decoder, response: Surrogate, scores: dict[str, Surrogate], seed: int
) -> Iterator[tuple[str, IntArray]]:
    num_options = decoder.space.valid.size
    for fraction in FRACTIONS:
        try:
            scaled = decoder.scaled(fraction, FINE_STEPS)
        except BudgetError:
            continue  # the lowest assignment needs more than this share
        exact = num_options <= (MAX_SINGLE if scaled.is_single else MAX_SEVERAL)
        optima = {
            name: scaled.optimum(score.option_costs).choices if exact else scaled.decode(score.option_costs)
            for name, score in scores.items()
        }
        ends = [descend(response, scaled, choices) for choices in optima.values()]
        if num_options <= MAX_QUADRATIC:
            ends.append(solve_quadratic(response, scaled, ends, seed=seed).choices)
        yield f"quadratic {fraction:.0%}", ends[int(np.argmin(response.predict(np.stack(ends))))]
        for name, choices in optima.items():
            yield f"{name} {fraction:.0%}", choices


def _enqueued(decoder: Decoder, assignments: Iterable[BitAssignment]) -> Iterator[tuple[str, IntArray]]:
    for index, assignment in enumerate(assignments):
        choices = decoder.space.choices(assignment)
        if not decoder.is_feasible(choices):
            assignment.check_pairs(decoder.space.setup)
            budgets = ", ".join(dict.fromkeys(limit.text for limit in decoder.limits))
            raise BudgetError(f"the enqueued assignment {index} exceeds the budget {budgets}.")
        yield f"enqueued {index}", choices


def _uniforms(decoder: Decoder) -> Iterator[tuple[str, IntArray]]:
    space = decoder.space
    groups = space.setup.groups.values()
    acts = sorted({b for g, w in zip(groups, space.is_weight, strict=True) if not w for b in g.bit_widths})
    bits = sorted({b for g, w in zip(groups, space.is_weight, strict=True) if w for b in g.bit_widths})
    for weight in bits:
        uniform = BitAssignment.uniform(space.setup, weight).bits
        choices = space.choices(BitAssignment(uniform))
        if decoder.is_feasible(choices):
            yield f"uniform {weight}", choices
            continue
        for activation in reversed(acts):
            nearest = {
                g.id: uniform[g.id] if w else min(g.bit_widths, key=lambda b: (abs(b - activation), b))
                for g, w in zip(groups, space.is_weight, strict=True)
            }
            choices = space.choices(BitAssignment(nearest))
            if decoder.is_feasible(choices):
                yield f"uniform w{weight}a{activation}", choices
                break
