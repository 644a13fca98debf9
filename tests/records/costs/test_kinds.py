"""Each kind of cost against its own formula, and a new kind that one entry makes known everywhere."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysearch.config import load_config
from raysearch.errors import BudgetError
from raysearch.records import (
    COST_KINDS,
    BitAssignment,
    CostFormula,
    CostKind,
    CostModel,
    CostSum,
    is_feasible,
    parse_budget,
    parse_budgets,
)
from raysearch.records.costs.kinds import Display
from raysearch.records.costs.text import cost, cost_name
from raysearch.search import OptionSpace, check_budgets, make_limits
from tests.support.search_problems import every_assignment, make_hardware_setup
from tests.support.small_records import assignments, setups


def energy(setup):
    """A toy: 3 units for each bit that a MAC reads, and 7 that nothing changes."""
    weights = tuple(setup.of_kind("weight").values())
    terms = CostSum(weights, lambda point, w, a: 3 * point.macs * (w + a), 7, is_coupled=True)
    return CostFormula((terms,), divisor=1000)


@pytest.fixture
def with_energy(monkeypatch):
    display = Display(((" pJ", 1e-3), (" nJ", 1.0)))
    kind = CostKind("energy", "energy", energy, {"nJ": 1.0}, display, reference_bits=8)
    monkeypatch.setitem(COST_KINDS, "energy", kind)


@pytest.mark.slow
@given(setups(), st.data())
def test_a_cost_is_the_greatest_sum_of_its_terms(setup, data):
    model = CostModel(setup)
    assignment = data.draw(assignments(setup))
    bits = assignment.per_point(setup)
    for kind, value in model.costs(assignment).items():
        formula = model.formula(kind)
        uses = [part.constant + sum(term for _, term in part.terms(bits)) for part in formula.sums]
        assert value == formula.cost(max(uses)) == formula.of(bits)


@pytest.mark.parametrize("kind", COST_KINDS)
def test_the_use_of_a_cost_is_the_inverse(kind):
    formula = CostModel(make_hardware_setup(3)).formula(kind)
    for use in (1, 1000, 123_456_789):
        assert formula.use_at(formula.cost(use)) == pytest.approx(use)


@pytest.mark.parametrize("kind", COST_KINDS.values(), ids=lambda kind: kind.name)
def test_every_unit_of_a_kind_is_read(kind):
    for unit, factor in kind.units.items():
        assert parse_budget(f"{kind.name}{kind.sign}3{unit}").limit == 3 * factor
    percent = f"{kind.name}{kind.sign}50%"
    if kind.is_relative:
        assert parse_budget(percent).relative
    else:
        with pytest.raises(BudgetError, match=r"have a 100 %"):
            parse_budget(percent)


def test_one_entry_makes_a_kind_known_everywhere(with_energy):
    setup = make_hardware_setup(3, 1)
    model = CostModel(setup)
    widest = BitAssignment.extreme(setup, -1)
    by_hand = 7
    for point in setup.of_kind("weight").values():
        by_hand += 3 * point.macs * (8 + (8 if point.input_point else 32))
    assert model.costs(widest)["energy"] == by_hand / 1000
    at_8_bits = 7 + sum(3 * point.macs * 16 for point in setup.points.values())
    assert model.reference["energy"] == pytest.approx(at_8_bits / 1000)
    assert model.lowest["energy"] < model.highest["energy"] == by_hand / 1000
    budgets = parse_budgets(["energy<=110%"])
    check_budgets(budgets, setup)
    limits = make_limits(OptionSpace(setup), budgets, model)
    for assignment in itertools.islice(every_assignment(setup), 300):
        choices = OptionSpace(setup).choices(assignment)
        is_kept = all(limit.is_kept(choices) for limit in limits)
        assert is_kept == (
            is_feasible(budgets, model, assignment) and not setup.broken_pairs(assignment.bits)
        )
    assert np.isclose(sum(model.shares("energy", widest).values()), by_hand / 1000)
    assert load_config(assignments=["search.front=energy"]).search.front_kind == "energy"
    assert (cost("energy", 0.25), cost_name("energy")) == ("250 pJ", "energy")
