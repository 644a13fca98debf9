"""Single moves that make an assignment keep the limits, and that spend what is left of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysearch.search.space import FloatArray, IntArray, Limit, OptionSpace


class Moves:
    """Moves within limits.

    Args:
        space: the options.
        limits: what must hold.
        base: choices that keep the limits.
    """

    def __init__(self, space: OptionSpace, limits: Sequence[Limit], base: IntArray) -> None:
        self._space, self._limits, self._base = space, tuple(limits), base
        self._columns = np.arange(space.widths.shape[1])
        self._part = _components(len(space.rows), limits)

    def repair(self, choices: IntArray, costs: FloatArray) -> IntArray:
        """Moves, the least harm per relief first, until every limit holds.

        Each single move lowers the sum of the relative excesses. Where none does, the groups that couplings
        tie to the worst one go to their base widths together and stay there; so it ends, at the base if
        nothing else keeps the limits.
        """
        found, free = choices.copy(), np.ones(len(choices), dtype=bool)
        while (over := self._violation(found)) > 0:
            harm = costs - self._space.take(costs, found)[:, None]
            relief = over - self._violations(found)
            score = np.where(harm > 0, harm / np.maximum(relief, 1e-300), harm * relief)
            helps = self._space.valid & free[:, None] & (relief > 1e-12 * over)
            score[~helps | (self._columns == found[:, None])] = np.inf
            row, column = divmod(int(np.argmin(score)), len(self._columns))
            if score[row, column] < np.inf:
                found[row] = column
                continue
            part = self._worst_part(found, free)
            found[part], free[part] = self._base[part], False
        return found

    def fill(self, choices: IntArray, costs: FloatArray) -> IntArray:
        """Moves that lower the cost and fit, the best gain per use first; ties go to the wider option."""
        found = choices.copy()
        while True:
            fits, use = self._space.valid.copy(), np.zeros(self._space.valid.shape)
            for limit in self._limits:
                change = limit.changes(found)
                fits &= change <= limit.capacity - int(limit.use(found))
                use += np.maximum(change, 0) / max(limit.capacity, 1)
            gain = self._space.take(costs, found)[:, None] - costs
            score = np.where(fits & (gain > 0), gain / np.maximum(use, 1e-12), 0.0)
            if score.max() <= 0:
                score = (fits & (gain == 0) & (self._columns > found[:, None])).astype(float)
                if score.max() <= 0:
                    return found
            row, column = divmod(int(np.argmax(score)), len(self._columns))
            found[row] = column

    def _worst_part(self, found: IntArray, free: FloatArray) -> IntArray:
        """The groups of the free component whose going to the base relieves most."""
        best, chosen = -np.inf, np.zeros(0, dtype=np.int64)
        for part in np.unique(self._part[free]):
            rows = np.flatnonzero(self._part == part)
            moved = found.copy()
            moved[rows] = self._base[rows]
            relief = -self._violation(moved)
            if relief > best:
                best, chosen = relief, rows
        return chosen

    def _violation(self, choices: IntArray) -> float:
        return sum(
            max(0, int(limit.use(choices)) - limit.capacity) / max(limit.capacity, 1)
            for limit in self._limits
        )

    def _violations(self, choices: IntArray) -> FloatArray:
        """[L, B]: Σ over the limits of the relative excess after each single move."""
        total = np.zeros(self._space.valid.shape)
        for limit in self._limits:
            after = limit.changes(choices) + (int(limit.use(choices)) - limit.capacity)
            total += np.maximum(after, 0) / max(limit.capacity, 1)
        return total


def _components(count: int, limits: Sequence[Limit]) -> IntArray:
    """A number for each group, equal where couplings tie groups together."""
    part = np.arange(count)
    for limit in limits:
        for first, second in limit.form.edges:
            low, high = sorted((part[first], part[second]))
            part[part == high] = low
    return part
