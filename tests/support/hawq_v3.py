"""The 18 integer programmes that HAWQ-V3 published: two nets, three budgets, three fractions, 4 or 8 bits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DATA = Path(__file__).parents[1] / "data" / "hawq_v3_ilp.json"
UNIT = 10**9
"""Published decimals become integers in this unit."""


@dataclass(frozen=True)
class Instance:
    """One instance: sizes and costs [L, 2], columns 4 and 8 bits; layers that share a width are one row."""

    name: str
    sizes: np.ndarray
    costs: np.ndarray
    capacity: int


def instances() -> Iterator[Instance]:
    """All of them, such as "resnet50 size .25"."""
    for net, data in json.loads(DATA.read_text())["models"].items():
        trace = np.array(data["trace"])
        costs = np.stack([trace * data["delta4_squared"], trace * data["delta8_squared"]], axis=1)
        params, bops = np.array(data["params"]), np.array(data["bops"])
        kinds = {
            "size": np.stack([params / 2, params], axis=1),
            "bops": np.stack([bops / 64, bops / 16], axis=1),
            "latency": np.stack([data["latency_int4"], data["latency_int8"]], axis=1),
        }
        groups = np.arange(len(trace))
        for first, second in data["coupled"]:
            groups[groups == groups[second]] = groups[first]
        rows = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        for kind, used in kinds.items():
            sizes = np.rint(used * UNIT).astype(np.int64)
            low, high = sizes.sum(axis=0).tolist()
            for percent in (25, 50, 75):
                yield Instance(
                    f"{net} {kind} .{percent}",
                    np.stack([sizes[row].sum(axis=0) for row in rows]),
                    np.stack([costs[row].sum(axis=0) for row in rows]),
                    low + percent * (high - low) // 100,
                )
