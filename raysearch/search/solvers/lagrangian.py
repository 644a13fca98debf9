"""Prices of several limits at once, and the assignment that they lead to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysearch.search.problem.limits import Limit
from raysearch.search.problem.space import FloatArray, IntArray, OptionSpace

NUM_ROUNDS = 80


def priced_choices(space: OptionSpace, limits: Sequence[Limit], costs: FloatArray) -> IntArray:
    """Choices [L] that nearly keep the limits at low cost: a subgradient ascent on the limits' prices.

    In each round every group takes its option of least cost + Σ price·use, and the price of a limit moves
    with its relative excess. A coupled limit counts by what an option changes from the last choices. The
    choices of least excess are handed back, the cheaper ones on a tie; a repair makes them feasible.
    """
    low = np.where(space.valid, costs, np.inf).min(axis=1, keepdims=True)
    extra = np.where(space.valid, costs - low, np.inf)
    spread = float(np.where(space.valid, extra, 0.0).max(axis=1).sum())
    prices = np.zeros(len(limits))
    capacity = np.array([max(limit.capacity, 1) for limit in limits], dtype=np.float64)
    found = space.lowest
    best, kept = (np.inf, np.inf), found
    for number in range(NUM_ROUNDS):
        priced = extra.copy()
        for price, limit, scale in zip(prices, limits, capacity, strict=True):
            if price > 0:
                use = limit.cost.linear if limit.is_separable else limit.changes(found)
                priced += np.where(space.valid, price * (use / scale), 0.0)
        found = np.argmin(priced, axis=1).astype(np.int64)
        over = np.array([int(limit.use(found)) - limit.capacity for limit in limits]) / capacity
        rank = (round(float(np.maximum(over, 0).sum()), 2), float(space.take(extra, found).sum()))
        if rank < best:
            best, kept = rank, found
        prices = np.maximum(0.0, prices + spread / (1 + 0.3 * number) * np.clip(over, -0.5, 0.5))
    return kept
