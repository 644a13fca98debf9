"""The few assignments to measure when a budget changes: optima of all surrogates, and neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from raysearch.errors import ConfigError, DataError
from raysearch.records import BitAssignment, Budget, CostModel, QuantizerSetup, SearchTrial, SensitivityTable
from raysearch.records import excesses as excesses_of
from raysearch.search.problem.limits import make_limits
from raysearch.search.problem.space import IntArray, OptionSpace
from raysearch.search.problem.surrogates import SURROGATES, Surrogate, make_surrogate
from raysearch.search.solvers.decoder import Decoder
from raysearch.search.solvers.local_search import descend
from raysearch.search.summary import completed, ranked

MeasureAll = Callable[[Mapping[int, BitAssignment]], Mapping[int, float]]


def measured_candidates(
    table: SensitivityTable,
    setup: QuantizerSetup,
    budgets: Sequence[Budget],
    measure: MeasureAll,
    *,
    first: BitAssignment,
    count: int = 4,
    surrogate: str = "response",
    maximize: bool = False,
) -> tuple[SearchTrial, ...]:
    """Measure `first`, the other surrogates' optima and the best neighbours of `first`, `count` in all.

    A neighbour differs in one group, or in two of which one goes up and one down; it keeps every budget, and
    those of the least prediction come first. Work: `count` assignments measured on all samples.

    Args:
        table: what every option does alone and in pairs.
        setup: groups and their widths.
        budgets: limits that must all hold.
        measure: trial number → assignment in, trial number → value out.
        first: the surrogate's own answer.
        count: the most assignments.
        surrogate: whose answer `first` is, and whose predictions order the neighbours.
        maximize: whether more is better.

    Returns:
        The complete trials, best measured value first.

    Raises:
        ConfigError: `count` is below 1, or the surrogate is unknown.
        BudgetError: the budgets cannot be met.
    """
    if count < 1:
        raise ConfigError(f"{count} assignments cannot be measured; take at least 1.")
    space, model = OptionSpace(setup), CostModel(setup)
    decoder = Decoder(space, make_limits(space, budgets, model))
    scores = make_surrogate(surrogate, table, space)
    start = space.choices(first)
    named = [(surrogate, start), *_optima(table, decoder, surrogate)]
    named += [("neighbour", choices) for choices in _neighbours(scores, decoder, start, count)]
    distinct: dict[bytes, tuple[str, IntArray]] = {}
    for source, choices in named:
        distinct.setdefault(choices.tobytes(), (source, choices))
    kept = list(distinct.values())[:count]
    asked = {number: space.assignment(choices) for number, (_, choices) in enumerate(kept)}
    values, trials = measure(asked), []
    for number, (source, choices) in enumerate(kept):
        costs = model.costs(asked[number])
        state = "COMPLETE" if np.isfinite(values[number]) else "FAIL"
        trials.append(
            SearchTrial(
                number, asked[number], costs, excesses_of(budgets, model, costs), values[number],
                float(scores.predict(choices)), source, state,
            )
        )  # fmt: skip
    return tuple(ranked(completed(trials), maximize))


def _optima(table: SensitivityTable, decoder: Decoder, but: str) -> list[tuple[str, IntArray]]:
    found = []
    for name in SURROGATES:
        try:
            scores = make_surrogate(name, table, decoder.space)
        except (ConfigError, DataError):
            continue  # of another matrix, or not finite
        if name != but:
            best = decoder.optimum(scores.option_costs).choices
            found.append((name, descend(scores, decoder, best)))
    return found


def _neighbours(scores: Surrogate, decoder: Decoder, start: IntArray, count: int) -> list[IntArray]:
    space = decoder.space
    singles = [(row, column) for row, column in np.argwhere(space.valid).tolist() if column != start[row]]
    tried = []
    for row, column in singles:
        one = start.copy()
        one[row] = column
        tried.append(one)
    # Of the swaps, those of neighbouring widths: their number grows with the square of the groups.
    up = [(r, c) for r, c in singles if c == start[r] + 1]
    down = [(r, c) for r, c in singles if c == start[r] - 1]
    for row, column in up:
        for other, lower in down:
            two = start.copy()
            two[row], two[other] = column, lower
            tried.append(two)
    if not tried:
        return []
    every = np.stack(tried)
    keep = np.ones(len(every), dtype=bool)
    for limit in decoder.limits:
        keep &= limit.use(every) <= limit.capacity
    every = every[keep]
    if not len(every):
        return []
    order = np.argsort(scores.predict(every), kind="stable")[:count]
    return [every[index] for index in order]
