"""A hand-sized setup and one record of every kind."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from raysearch.records import (
    PER_TENSOR,
    BitAssignment,
    Granularity,
    OptionEffect,
    QuantizationPoint,
    QuantizerGroup,
    QuantizerRange,
    QuantizerSetup,
    RangeTable,
    SearchTrial,
    SensitivityTable,
    Site,
    Trace,
    TrialState,
)


def small_setup() -> QuantizerSetup:
    """Two weights, a of 10 values in 2 channels fed by float, b of 6 values fed by x of 5 values."""
    points = [
        QuantizationPoint(
            "a", "weight", (Site("a", "parameter", "weight"),), (2, 5), Granularity(0), macs=100
        ),
        QuantizationPoint("x", "activation", (Site("b", "input"),), (5,)),
        QuantizationPoint(
            "b", "weight", (Site("b", "parameter", "weight"),), (2, 3), macs=30, input_point="x"
        ),
    ]
    groups = [
        QuantizerGroup("ga", ("a",), (2, 4, 8)),
        QuantizerGroup("gx", ("x",), (4, 8)),
        QuantizerGroup("gb", ("b",), (3, 8)),
    ]
    return QuantizerSetup({p.id: p for p in points}, {g.id: g for g in groups})


def small_table() -> SensitivityTable:
    setup = small_setup()
    rng = np.random.default_rng(0)
    delta = rng.standard_normal((len(setup.options()), 9))
    effects = {
        (group, bits): OptionEffect(
            group, bits, setup.group_kind(group), 0.1, 0.2 / bits.num_bits, 0.3, 1e-17
        )
        for group, bits in setup.options()
    }
    traces = {
        "a": Trace("a", -0.25, 0.01, 0.005, 0.008, 8, 64, "hutchinson", False),
        "b": Trace("b", 1 / 3, 0.0, 0.0, 0.0, 1, 64, "ggn-exact", True),
    }
    return SensitivityTable(traces, effects, delta @ delta.T, "mark")


def small_ranges() -> RangeTable:
    return RangeTable(
        {
            ("a", 4): QuantizerRange(np.array([0.1, 0.2], np.float32), np.zeros(2, np.int32), True),
            ("x|odd", 8): QuantizerRange(np.array([0.5], np.float32), np.array([3], np.int32), False),
        }
    )


def small_trials() -> tuple[SearchTrial, ...]:
    def trial(number: int, value: float, state: TrialState = TrialState.COMPLETE) -> SearchTrial:
        bits = {"ga": 2, "gx": 8, "gb": 3}
        costs, excess = {"avg_bits": 2.5, "size": 20.0}, {"size<=20B": 0.0}
        return SearchTrial(number, BitAssignment(bits), costs, excess, value, 0.1, "greedy", state)

    return trial(0, 1 / 3), trial(1, float("nan"), TrialState.FAIL), trial(2, 0.25)


@st.composite
def setups(draw: st.DrawFn) -> QuantizerSetup:
    """Any mix of weights and activations, some in groups of two, pinned or free."""
    points: dict[str, QuantizationPoint] = {}
    groups: dict[str, QuantizerGroup] = {}
    widths = st.lists(st.integers(2, 8), min_size=1, max_size=4, unique=True).map(lambda b: tuple(sorted(b)))
    fed = [""]
    for index in range(draw(st.integers(0, 3))):
        name = f"x{index}"
        shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
        points[name] = QuantizationPoint(name, "activation", (Site(name, "input"),), shape)
        groups[f"g{name}"] = QuantizerGroup(f"g{name}", (name,), draw(widths))
        fed.append(name)
    for index in range(draw(st.integers(1, 4))):
        names = tuple(f"w{index}.{part}" for part in range(draw(st.integers(1, 2))))
        for name in names:
            shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
            granularity = draw(st.sampled_from([PER_TENSOR, Granularity(0)]))
            macs, source = draw(st.integers(0, 10**9)), draw(st.sampled_from(fed))
            site = Site(name, "parameter", "weight")
            points[name] = QuantizationPoint(name, "weight", (site,), shape, granularity, macs, source)
        groups[f"g{index}"] = QuantizerGroup(f"g{index}", names, draw(widths))
    return QuantizerSetup(points, groups)


@st.composite
def assignments(draw: st.DrawFn, setup: QuantizerSetup) -> BitAssignment:
    return BitAssignment({g.id: draw(st.sampled_from(g.bit_widths)) for g in setup.groups.values()})
