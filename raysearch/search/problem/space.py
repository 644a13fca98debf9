"""The search in numbers: options as a padded array.

Shapes: L groups, B the greatest number of schemes of a group, P = L·B. Group l at choice b is entry
[l, b], flat index l·B + b; entries where a group has fewer schemes are padding (`valid` is False).
An assignment is `choices`, int64 of shape [L].
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import numpy.typing as npt

from raysearch.records import BitAssignment, QuantizerSetup

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class OptionSpace:
    """All options of a setup as an array [L, B], schemes ascending.

    Attributes:
        setup: the setup.
        groups: group ids, in the order of the setup.
        allowed: the schemes of each group.
        row_of: quantization point → row of its group.
        widths: int64 [L, B], bits; 0 where padded.
        valid: bool [L, B].
        is_weight: bool [L].
        rows: int64 [L], 0 … L − 1.
    """

    def __init__(self, setup: QuantizerSetup) -> None:
        self.setup = setup
        self.groups = tuple(setup.groups)
        self.allowed = tuple(setup.groups[name].schemes for name in self.groups)
        self.row_of = {p: row for row, name in enumerate(self.groups) for p in setup.groups[name].points}
        self.widths: IntArray = np.zeros((len(self.allowed), max(map(len, self.allowed))), dtype=np.int64)
        for row, schemes in enumerate(self.allowed):
            self.widths[row, : len(schemes)] = [scheme.num_bits for scheme in schemes]
        self.valid: BoolArray = self.widths > 0
        self.is_weight: BoolArray = np.array([setup.group_kind(g) == "weight" for g in self.groups])
        self.rows: IntArray = np.arange(len(self.groups))
        self._without_pairs = replace(setup, pairs={})
        self._column_of = [{scheme: column for column, scheme in enumerate(row)} for row in self.allowed]

    @property
    def num_columns(self) -> int:
        """B, the greatest number of schemes of a group."""
        return int(self.widths.shape[1])

    @property
    def lowest(self) -> IntArray:
        """Every group at its lowest width."""
        return np.zeros(len(self.groups), dtype=np.int64)

    def choices(self, assignment: BitAssignment) -> IntArray:
        """The choices of an assignment that fits the setup; width pairs are a limit, and not looked at.

        Raises:
            PlacementError: it does not fit.
        """
        assignment.check(self._without_pairs)
        columns = zip(self.groups, self._column_of, strict=True)
        return np.array([column[assignment.schemes[name]] for name, column in columns], dtype=np.int64)

    def assignment(self, choices: IntArray) -> BitAssignment:
        """The assignment of choices, in group order."""
        options = zip(self.groups, self.allowed, choices.tolist(), strict=True)
        return BitAssignment({name: schemes[column] for name, schemes, column in options})

    def take(self, table: FloatArray, choices: IntArray) -> FloatArray:
        """Entries [..., L] of a table [L, B] at choices [..., L]."""
        entries: FloatArray = table[self.rows, choices]
        return entries

    def total(self, costs: FloatArray, choices: IntArray) -> float:
        """Σ_l costs[l, x_l] of choices [L]."""
        return float(self.take(costs, choices).sum())

    def flat(self, choices: IntArray) -> IntArray:
        """Flat indices [..., L] of choices [..., L]."""
        flat: IntArray = self.rows * self.num_columns + choices
        return flat

    def enumerate(self, most: int) -> IntArray | None:
        """All assignments, shape [N, L], or None when there are more than `most`."""
        total = 1
        for schemes in self.allowed:
            total *= len(schemes)
            if total > most:
                return None
        columns = [range(len(schemes)) for schemes in self.allowed]
        return np.array(list(product(*columns)), dtype=np.int64)
