"""The least cost for a drop, against every assignment."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysearch.config import SearchConfig
from raysearch.errors import BudgetError, ConfigError, RunError
from raysearch.records import BitAssignment, CostModel, drop_of, is_feasible, parse_budgets, parse_max_drop
from raysearch.search import Race, check_minimized, minimize_cost
from tests.support.scheme_setups import with_schemes
from tests.support.search_problems import (
    Divergence,
    every_assignment,
    make_hardware_setup,
    make_setup,
    make_table,
)

NUM_SHARDS = 4


class Metric:
    """A bent and disturbed quadratic form, or a score that falls with it, on shards that differ."""

    def __init__(self, table, disturbance=0.3, score=False):
        self.form, self.score, self.asked = Divergence(table, disturbance), score, []

    def value(self, assignment):
        bad = self.form.value(assignment) if assignment.bits else 0.0
        return 0.9 / (1 + bad) if self.score else bad

    def __call__(self, assignments, shards):
        self.asked += [(a.digest(), s) for a in assignments.values() for s in shards]
        shift = 0.1 if self.score else 1.0
        return {
            n: {s: (self.value(a) * np.array([1 - shift * w, 1 + shift * w]), np.ones(2))
                for s in shards for w in [s / NUM_SHARDS]}
            for n, a in assignments.items()
        }  # fmt: skip


def minimize(
    table, setup, budgets, metric, kind, drop, seed=0, *, maximize=False, num_trials=64, on_batch=None
):
    direction = "maximize" if maximize else "minimize"
    search = SearchConfig(minimize=kind, max_drop=drop.text, direction=direction, num_trials=num_trials)
    race = Race(metric, NUM_SHARDS, search.racing_error, maximize)
    return minimize_cost(table, setup, budgets, race, search, seed=seed, on_batch=on_batch)


def least_by_hand(setup, metric, budgets, kind, drop, maximize):
    model, base = CostModel(setup), metric.value(BitAssignment({}))
    held = [
        model.costs(a)[kind]
        for a in every_assignment(setup)
        if not setup.broken_pairs(a.bits)
        and is_feasible(budgets, model, a)
        and drop.is_kept(drop_of(metric.value(a), base, maximize), base)
    ]
    return min(held, default=None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "kind", "texts", "score"),
    [
        (lambda: make_setup(5), "size", (), False),
        (lambda: make_setup(3), "bops", ("avg_bits<=6",), True),
        (make_hardware_setup, "latency", (), False),
        # Costs are in no order: of the five, 2g2a stores the most bits.
        (lambda: with_schemes(make_setup(3), "2g2a", "3", "4", "4g4", "6"), "bpw", (), False),
    ],
)
def test_the_least_is_that_of_all_assignments(make, kind, texts, score):
    setup, budgets = make(), parse_budgets(texts) if texts else ()
    for seed in range(2 if kind == "size" else 1):
        table = make_table(setup, seed)
        metric = Metric(table, score=score)
        values = sorted(metric.value(a) for a in every_assignment(setup))
        middle = values[len(values) // 2 if score else len(values) // 3]
        amount = drop_of(middle, metric.value(BitAssignment({})), score)
        drop = parse_max_drop(f"metric={amount:.9g}")
        found, least = minimize(
            table,
            setup,
            budgets,
            metric,
            kind,
            drop,
            seed,
            maximize=score,
            num_trials=32 if kind == "size" else 8,
        )
        expected = least_by_hand(setup, metric, budgets, kind, drop, score)
        assert expected is not None
        assert least.cost == pytest.approx(expected, rel=1e-9)
        assert least.value == pytest.approx(metric.value(found.best.assignment))
        assert least.drop <= least.allowed + 1e-9
        assert least.cost == found.best.costs[kind]
        assert len(metric.asked) == len(set(metric.asked)), "nothing is measured twice"
        measured = {t.assignment.digest() for t in found.trials} | {BitAssignment({}).digest()}
        assert {mark for mark, _ in metric.asked} == measured, "what is measured is a trial"
        assert [t.number for t in found.trials] == list(range(len(found.trials)))
        assert all(v <= 0 for t in found.trials for v in t.excess.values())
        assert set(found.best.excess) == set(texts)
        assert min(found.margins().values()) >= 0


@pytest.mark.slow
def test_the_same_arguments_give_the_same_trials_whatever_was_measured_before():
    setup = make_setup(5)
    table, drop, told = make_table(setup), parse_max_drop("metric=0.05"), []
    first = minimize(table, setup, (), Metric(table), "size", drop, on_batch=told.append)
    again = minimize(table, setup, (), Metric(table), "size", drop)
    assert first[1] == again[1]
    assert first[0].trials == again[0].trials
    assert told[-1] == first[0].trials
    assert [len(trials) for trials in told] == sorted(len(trials) for trials in told)


def test_what_cannot_be_kept_says_how_near_it_came():
    setup = make_setup()
    table = make_table(setup)
    metric = Metric(table)
    least = min(metric.value(a) for a in every_assignment(setup))
    with pytest.raises(RunError, match=f"the least drop measured is {least:.6g}") as caught:
        minimize(table, setup, (), metric, "size", parse_max_drop("metric=0"))
    assert "before training" in str(caught.value)
    with pytest.raises(BudgetError, match="every assignment"):
        check_minimized("act_bits", (), setup)
    with pytest.raises(BudgetError, match="latency"):
        check_minimized("latency", (), setup)


@pytest.mark.parametrize(
    "text", ["accuracy", "accuracy=-1", "=0.1", "accuracy=x", "divergence=1%", "a=1e999"]
)
def test_drops_that_mean_nothing_are_refused(text):
    with pytest.raises(ConfigError, match="greatest drop"):
        parse_max_drop(text)


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 10), st.floats(-5, 5), st.booleans())
def test_a_drop_is_read_as_it_was_meant(amount, value, maximize):
    plain, share = parse_max_drop(f"top 1 = {amount!r}"), parse_max_drop(f"top 1={amount!r}%")
    assert (plain.metric, plain.amount) == ("top 1", amount)
    assert share.allowed(value) == pytest.approx(amount / 100 * abs(value))
    worse = value - amount if maximize else value + amount
    assert plain.is_kept(drop_of(worse, value, maximize), value)
    assert not plain.is_kept(drop_of(worse, value, not maximize) + 2 * amount + 1e-6, value)
    assert not plain.is_kept(float("nan"), value)
