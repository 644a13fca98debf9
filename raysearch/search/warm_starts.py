"""Where the search starts: the answers that need no search, and the baselines it must beat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from raysearch.errors import BudgetError, DataError
from raysearch.records import BitAssignment, SensitivityTable
from raysearch.search.decoder import Decoder
from raysearch.search.knapsack import FINE_STEPS
from raysearch.search.local_search import descend
from raysearch.search.space import IntArray
from raysearch.search.surrogates import Surrogate, make_surrogate

FRACTIONS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7)
"""Shares of every budget at which the additive optimum is taken."""


@dataclass(frozen=True)
class WarmStart:
    """A named assignment that is measured before anything is sampled.

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
) -> list[WarmStart]:
    """All warm starts, required ones first; several may name the same assignment.

    - `quadratic`: the best local optimum of the response form, descended from all the others;
    - `uniform b`: weights at b bits, activations at the widest uniform width that fits (`uniform w4a8`
      when that is not their widest); `enqueued i`: the user's own;
    - `additive 100%` …: the optimum of the surrogate's option costs at a share of every budget;
    - `hawq`, `weight-error`: the optima of those scores, where finite; `greedy`: see `Decoder.greedy`.

    Raises:
        BudgetError: an enqueued assignment exceeds a budget.
        PlacementError: an enqueued assignment does not fit the setup, or breaks its width pairs.
    """
    fine = decoder.scaled(1.0, FINE_STEPS)
    required = [WarmStart(name, choices, True) for name, choices in _uniforms(decoder)]
    for index, assignment in enumerate(enqueue):
        choices = decoder.space.choices(assignment)
        if not decoder.is_feasible(choices):
            assignment.check_pairs(decoder.space.setup)
            budgets = ", ".join(dict.fromkeys(limit.text for limit in decoder.limits))
            raise BudgetError(f"the enqueued assignment {index} exceeds the budget {budgets}.")
        required.append(WarmStart(f"enqueued {index}", choices, True))
    others = [WarmStart(name, choices, False) for name, choices in _additive(surrogate, fine)]
    for name in ("hawq", "weight-error"):
        try:
            costs = make_surrogate(name, table, decoder.space).option_costs
        except DataError:
            continue
        others.append(WarmStart(name, fine.optimum(costs).choices, False))
    others.append(WarmStart("greedy", decoder.greedy(surrogate.option_costs), False))
    response = surrogate if surrogate.gram is not None else make_surrogate("response", table, decoder.space)
    starts = [start.choices for start in (*others, *required)]
    starts.append(fine.optimum(response.option_costs).choices)
    ends = np.stack([descend(response, decoder, start) for start in starts])
    best = ends[int(np.argmin(response.predict(ends)))]
    return [WarmStart("quadratic", best, True), *required, *others]


def distinct(starts: Sequence[WarmStart]) -> list[WarmStart]:
    """The first of each assignment."""
    kept: dict[bytes, WarmStart] = {}
    for start in starts:
        kept.setdefault(start.choices.tobytes(), start)
    return list(kept.values())


def _additive(surrogate: Surrogate, decoder: Decoder) -> Iterator[tuple[str, IntArray]]:
    for fraction in FRACTIONS:
        try:
            scaled = decoder.scaled(fraction, FINE_STEPS)
        except BudgetError:
            continue  # the lowest assignment needs more than this share
        yield f"additive {fraction:.0%}", scaled.optimum(surrogate.option_costs).choices


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
