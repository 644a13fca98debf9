"""Single moves that make an assignment keep the limits, and that spend what is left of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysearch.records.components import connected_components
from raysearch.search.problem.limits import Limit
from raysearch.search.problem.space import BoolArray, FloatArray, IntArray, OptionSpace
from raysearch.search.use_state import State


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
        self._part = _coupled_parts(len(space.rows), limits)

    def repair(self, choices: IntArray, costs: FloatArray) -> IntArray:
        """Moves, the least harm per relief first, until every limit holds.

        Each single move lowers the sum of the relative excesses. Where none does, the groups that couplings
        tie to the worst one go to their base widths together and stay there; so it ends, at the base if
        nothing else keeps the limits.
        """
        state, free = State(self._space, self._limits, choices), np.ones(len(choices), dtype=bool)
        while (over := state.violation()) > 0:
            harm = costs - self._space.take(costs, state.choices)[:, None]
            relief = over - state.violations()
            score = np.where(harm > 0, harm / np.maximum(relief, 1e-300), harm * relief)
            helps = self._space.valid & free[:, None] & (relief > 1e-12 * over)
            score[~helps | (self._columns == state.choices[:, None])] = np.inf
            row, column = divmod(int(np.argmin(score)), len(self._columns))
            if score[row, column] < np.inf:
                state.move(row, column)
                continue
            part = self._worst_part(state.choices, free)
            for row in part.tolist():
                state.move(row, int(self._base[row]))
            free[part] = False
        return state.choices

    def fill(self, choices: IntArray, costs: FloatArray) -> IntArray:
        """Moves that lower the cost and fit, the best gain per use first; ties go to the wider option."""
        state = State(self._space, self._limits, choices)
        gain = self._space.take(costs, choices)[:, None] - costs
        score = self._gain_per_use(state, gain, np.arange(len(choices)))
        while True:
            fits = self._space.valid & state.fits()
            able = np.where(fits, score, 0.0)
            if able.max() <= 0:
                able = (fits & (gain == 0) & (self._columns > state.choices[:, None])).astype(float)
                if able.max() <= 0:
                    return state.choices
            row, column = divmod(int(np.argmax(able)), len(self._columns))
            rows = state.move(row, column)
            gain[row] = costs[row, column] - costs[row]
            score[rows] = self._gain_per_use(state, gain[rows], rows)

    def _gain_per_use(self, state: State, gain: FloatArray, rows: IntArray) -> FloatArray:
        use = np.zeros(gain.shape)
        for limit, change in zip(self._limits, state.changes, strict=True):
            use += np.maximum(change[rows], 0) / max(limit.capacity, 1)
        return np.where(gain > 0, gain / np.maximum(use, 1e-12), 0.0)

    def _worst_part(self, found: IntArray, free: BoolArray) -> IntArray:
        """The groups of the free component whose going to the base relieves most; the first on a tie."""
        parts, of_row = np.unique(self._part, return_inverse=True)
        after = np.zeros(len(parts))
        for limit in self._limits:
            # Couplings stay within a component, so each one's part of the use is its own.
            change = np.zeros(len(parts), dtype=np.int64)
            np.add.at(change, of_row, limit.parts(self._base) - limit.parts(found))
            over = change + (int(limit.use(found)) - limit.capacity)
            after += np.maximum(over, 0) / max(limit.capacity, 1)
        after[~np.isin(parts, self._part[free])] = np.inf
        return np.flatnonzero(self._part == parts[int(np.argmin(after))])


def _coupled_parts(num_groups: int, limits: Sequence[Limit]) -> IntArray:
    """[L]: a number for each group, equal where couplings tie groups together; ascending by first group."""
    edges = [(int(first), int(second)) for limit in limits for first, second in limit.cost.edges]
    part = np.zeros(num_groups, dtype=np.int64)
    for number, members in enumerate(connected_components(range(num_groups), edges)):
        part[list(members)] = number
    return part
