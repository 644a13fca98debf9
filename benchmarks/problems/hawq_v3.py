"""The 18 integer programmes that HAWQ-V3 published: two nets, three budgets, three fractions, 4 or 8 bits.

HAWQ-V3, Yao et al. 2021; the data are those of its repository.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from raysearch.search.solvers.dominance import solve_exactly
from raysearch.search.solvers.knapsack import Knapsack
from raysearch.search.solvers.quiet_stdout import quiet_stdout

DATA = Path(__file__).with_name("hawq_v3_ilp.json")
UNIT = 10**9
"""Published decimals become integers in this unit."""


@dataclass(frozen=True)
class Instance:
    """One instance: sizes and costs [L, 2], columns 4 and 8 bits; layers that share a width are one row."""

    name: str
    sizes: np.ndarray
    costs: np.ndarray
    capacity: int

    def solve(self) -> Any:
        """The optimum by the search's own solver: `choices`, `value`, `gap`."""
        valid = np.ones(self.sizes.shape, dtype=bool)
        start = Knapsack(self.sizes, valid, self.capacity).solve(self.costs)
        return solve_exactly(self.sizes, valid, self.capacity, self.costs, start)

    def solve_by_milp(self) -> float:
        """The optimum's value by HiGHS, to a gap of 0."""
        rows, columns = self.sizes.shape
        one_of_each_row = np.kron(np.eye(rows), np.ones(columns))
        share_used = self.sizes.ravel() / self.capacity
        with quiet_stdout():
            result = milp(
                self.costs.ravel(),
                constraints=[
                    LinearConstraint(one_of_each_row, 1, 1),
                    LinearConstraint(share_used, ub=1 + 1e-12),
                ],
                bounds=Bounds(0, 1),
                integrality=np.ones(rows * columns),
                options={"mip_rel_gap": 0},
            )
        return float(result.fun)


def instances() -> Iterator[Instance]:
    """All of them, such as "resnet50 size .25"."""
    for net, data in json.loads(DATA.read_text())["models"].items():
        trace = np.array(data["trace"])
        costs = np.stack([trace * data["delta4_squared"], trace * data["delta8_squared"]], axis=1)
        params, bops = np.array(data["params"]), np.array(data["bops"])
        uses = {
            "size": np.stack([params / 2, params], axis=1),
            "bops": np.stack([bops / 64, bops / 16], axis=1),
            "latency": np.stack([data["latency_int4"], data["latency_int8"]], axis=1),
        }
        groups = np.arange(len(trace))
        for first, second in data["coupled"]:
            groups[groups == groups[second]] = groups[first]
        rows = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        row_costs = np.stack([costs[row].sum(axis=0) for row in rows])
        for kind, use in uses.items():
            sizes = np.rint(use * UNIT).astype(np.int64)
            row_sizes = np.stack([sizes[row].sum(axis=0) for row in rows])
            low, high = sizes.sum(axis=0).tolist()
            for percent in (25, 50, 75):
                capacity = low + percent * (high - low) // 100
                yield Instance(f"{net} {kind} .{percent}", row_sizes, row_costs, capacity)
