"""Choices that change by one group at a time, with what each further move would use of each limit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysearch.search.problem.limits import Limit
from raysearch.search.problem.space import BoolArray, FloatArray, IntArray, OptionSpace


class State:
    """Choices, their use of each limit, and `Limit.changes` of them, kept up to date.

    Work of a move: the group's own row and those of the groups that it is coupled with, in integers; so it
    is the same as computing all of it anew.

    Attributes:
        choices: [L].
        changes: per limit [L, B].
    """

    def __init__(self, space: OptionSpace, limits: Sequence[Limit], choices: IntArray) -> None:
        self._limits = tuple(limits)
        self._room = [limit.capacity - int(limit.use(choices)) for limit in limits]
        self._valid = space.valid
        self.choices = choices.copy()
        self.changes = [limit.changes(choices) for limit in limits]

    def move(self, row: int, column: int) -> IntArray:
        """One group takes another option; returns the rows whose changes are others now."""
        before, rows = int(self.choices[row]), [row]
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
        found = np.ones(self._valid.shape, dtype=bool)
        for change, room in zip(self.changes, self._room, strict=True):
            found &= change <= room
        return found

    def violation(self) -> float:
        """Σ over the limits of the relative excess."""
        pairs = zip(self._limits, self._room, strict=True)
        return sum(max(0, -room) / max(limit.capacity, 1) for limit, room in pairs)

    def violations(self) -> FloatArray:
        """[L, B]: the same after each single move."""
        total = np.zeros(self._valid.shape)
        for limit, change, room in zip(self._limits, self.changes, self._room, strict=True):
            total += np.maximum(change - room, 0) / max(limit.capacity, 1)
        return total
