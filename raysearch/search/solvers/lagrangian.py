"""Lagrangian prices of several limits at once, and the assignment that they lead to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysearch.search.problem.limits import Limit
from raysearch.search.problem.space import FloatArray, IntArray, OptionSpace

NUM_ROUNDS = 80
"""Subgradient steps; each is a few array operations."""


def priced_choices(space: OptionSpace, limits: Sequence[Limit], costs: FloatArray) -> IntArray:
    """Choices [L] that nearly keep the limits at low cost: a subgradient ascent on the limits' prices.

    In each round every group takes its option of least cost + Σ price·use, and the price of a limit moves
    with its relative excess. A coupled limit counts by what an option changes from the last choices. The
    choices of least excess are handed back, the cheaper ones on a tie; a repair makes them feasible.

    Args:
        space: the options.
        limits: what should hold.
        costs: [L, B].
    """
    least = np.where(space.valid, costs, np.inf).min(axis=1, keepdims=True)
    extra = np.where(space.valid, costs - least, np.inf)
    # How much all choices together can cost more than the least: the scale of a price.
    spread = float(np.where(space.valid, extra, 0.0).max(axis=1).sum())
    capacities = np.array([max(limit.capacity, 1) for limit in limits], dtype=np.float64)
    prices = np.zeros(len(limits))
    choices = space.lowest
    best = choices
    best_rank = (np.inf, np.inf)
    for number in range(NUM_ROUNDS):
        priced = extra.copy()
        for price, limit, capacity in zip(prices, limits, capacities, strict=True):
            if price > 0:
                use = limit.cost.linear if limit.is_separable else limit.changes(choices)
                priced += np.where(space.valid, price * (use / capacity), 0.0)
        choices = np.argmin(priced, axis=1).astype(np.int64)
        excess = np.array([-limit.room(choices) for limit in limits]) / capacities
        # Excesses within half a percent are alike: a repair makes up for them.
        rank = (round(float(np.maximum(excess, 0).sum()), 2), space.total(extra, choices))
        if rank < best_rank:
            best, best_rank = choices, rank
        step = spread / (1 + 0.3 * number)
        prices = np.maximum(0.0, prices + step * np.clip(excess, -0.5, 0.5))
    return best
