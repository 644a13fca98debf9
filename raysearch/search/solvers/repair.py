"""Single moves that make an assignment keep the limits, and that spend what is left of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysearch.records.components import connected_components
from raysearch.search.problem.limits import Limit
from raysearch.search.problem.space import BoolArray, FloatArray, IntArray, OptionSpace


class State:
    """Choices, their use of each limit, and `Limit.changes` of them, kept up to date.

    Work of a move: the group's own row and those of the groups that it is coupled with, in integers; so it
    is the same as computing all of it anew.

    Args:
        space: the options.
        limits: what must hold.
        choices: [L], where to start.

    Attributes:
        choices: [L].
        changes: per limit [L, B].
    """

    def __init__(self, space: OptionSpace, limits: Sequence[Limit], choices: IntArray) -> None:
        self._limits = tuple(limits)
        self._room = [limit.room(choices) for limit in limits]
        self._valid = space.valid
        self.choices = choices.copy()
        self.changes = [limit.changes(choices) for limit in limits]

    def move(self, row: int, column: int) -> IntArray:
        """One group takes another option; returns the rows whose changes are others now."""
        before = int(self.choices[row])
        rows = [row]
        self.choices[row] = column
        for index, limit in enumerate(self._limits):
            change = self.changes[index]
            self._room[index] -= int(change[row, column])
            change[row] -= change[row, column]
            for other, table in limit.couplings(row):
                grown = table[column] - table[before]
                change[other] += grown - grown[self.choices[other]]
                rows.append(other)
        return np.array(rows)

    def fits(self) -> BoolArray:
        """[L, B]: whether every limit has room for the move."""
        fits = np.ones(self._valid.shape, dtype=bool)
        for change, room in zip(self.changes, self._room, strict=True):
            fits &= change <= room
        return fits

    def violation(self) -> float:
        """Σ over the limits of the relative excess."""
        total = 0.0
        for limit, room in zip(self._limits, self._room, strict=True):
            total += max(0, -room) / max(limit.capacity, 1)
        return total

    def violations(self) -> FloatArray:
        """[L, B]: the same after each single move."""
        total = np.zeros(self._valid.shape)
        for limit, change, room in zip(self._limits, self.changes, self._room, strict=True):
            total += np.maximum(change - room, 0) / max(limit.capacity, 1)
        return total


class Moves:
    """Moves within limits.

    Args:
        space: the options.
        limits: what must hold.
        base: choices that keep the limits.
    """

    def __init__(self, space: OptionSpace, limits: Sequence[Limit], base: IntArray) -> None:
        self._space = space
        self._limits = tuple(limits)
        self._base = base
        self._columns = np.arange(space.num_columns)
        self._part = _coupled_parts(len(space.rows), limits)

    def repair(self, choices: IntArray, costs: FloatArray) -> IntArray:
        """Moves, the least harm per relief first, until every limit holds.

        Each single move lowers the sum of the relative excesses. Where none does, the groups that couplings
        tie to the worst one go to their base widths together and stay there; so it ends, at the base if
        nothing else keeps the limits.

        Args:
            choices: [L], which may exceed the limits.
            costs: [L, B].
        """
        state = State(self._space, self._limits, choices)
        is_free = np.ones(len(choices), dtype=bool)
        violation = state.violation()
        while violation > 0:
            row, column = self._best_relief(state, costs, is_free, violation)
            if row >= 0:
                state.move(row, column)
            else:
                part = self._worst_part(state.choices, is_free)
                for member in part.tolist():
                    state.move(member, int(self._base[member]))
                is_free[part] = False
            violation = state.violation()
        return state.choices

    def fill(self, choices: IntArray, costs: FloatArray) -> IntArray:
        """Moves that lower the cost and fit, the best gain per use first; ties go to the wider option.

        Args:
            choices: [L], within the limits.
            costs: [L, B].
        """
        state = State(self._space, self._limits, choices)
        gain = self._space.take(costs, choices)[:, None] - costs
        score = self._gain_per_use(state, gain, np.arange(len(choices)))
        while True:
            fits = self._space.valid & state.fits()
            able = np.where(fits, score, 0.0)
            if able.max() <= 0:
                # Nothing lowers the cost any more: a wider option of the same cost takes no bits away.
                is_wider = self._columns > state.choices[:, None]
                able = (fits & (gain == 0) & is_wider).astype(float)
                if able.max() <= 0:
                    return state.choices
            row, column = divmod(int(np.argmax(able)), len(self._columns))
            rows = state.move(row, column)
            gain[row] = costs[row, column] - costs[row]
            score[rows] = self._gain_per_use(state, gain[rows], rows)

    def _best_relief(
        self, state: State, costs: FloatArray, is_free: BoolArray, violation: float
    ) -> tuple[int, int]:
        """The group and option of least harm per relief; (-1, -1) where no single move helps."""
        harm = costs - self._space.take(costs, state.choices)[:, None]
        relief = violation - state.violations()
        # A move that harms nothing comes before all others, the greater its benefit times relief the earlier.
        score = np.where(harm > 0, harm / np.maximum(relief, 1e-300), harm * relief)
        helps = self._space.valid & is_free[:, None] & (relief > 1e-12 * violation)
        is_present = self._columns == state.choices[:, None]
        score[~helps | is_present] = np.inf
        row, column = divmod(int(np.argmin(score)), len(self._columns))
        return (row, column) if score[row, column] < np.inf else (-1, -1)

    def _gain_per_use(self, state: State, gain: FloatArray, rows: IntArray) -> FloatArray:
        use = np.zeros(gain.shape)
        for limit, change in zip(self._limits, state.changes, strict=True):
            use += np.maximum(change[rows], 0) / max(limit.capacity, 1)
        return np.where(gain > 0, gain / np.maximum(use, 1e-12), 0.0)

    def _worst_part(self, choices: IntArray, is_free: BoolArray) -> IntArray:
        """The groups of the free part whose going to the base relieves most; the first on a tie."""
        num_parts = int(self._part.max()) + 1
        after = np.zeros(num_parts)
        for limit in self._limits:
            # Couplings stay within a part, so each one's share of the use is its own.
            change = np.zeros(num_parts, dtype=np.int64)
            np.add.at(change, self._part, limit.parts(self._base) - limit.parts(choices))
            over = change - limit.room(choices)
            after += np.maximum(over, 0) / max(limit.capacity, 1)
        has_free = np.isin(np.arange(num_parts), self._part[is_free])
        after[~has_free] = np.inf
        return np.flatnonzero(self._part == int(np.argmin(after)))


def _coupled_parts(num_groups: int, limits: Sequence[Limit]) -> IntArray:
    """[L]: a number for each group, equal where couplings tie groups together; ascending by first group."""
    edges = [(int(first), int(second)) for limit in limits for first, second in limit.cost.edges]
    part = np.zeros(num_groups, dtype=np.int64)
    for number, members in enumerate(connected_components(range(num_groups), edges)):
        part[list(members)] = number
    return part
