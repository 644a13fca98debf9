import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysearch.errors import BudgetError
from raysearch.records import (
    COST_KINDS,
    BitAssignment,
    CostModel,
    QuantizerSetup,
    check_achievable,
    excesses,
    is_feasible,
    parse_budget,
    parse_budgets,
)
from tests.support.small_records import assignments, setups, small_setup

UNITS = [
    ("avg_bits", "", 1),
    ("act_bits", "", 1),
    ("size", "kB", 1e3),
    ("size", "MiB", 2**20),
    ("bops", "G", 1e9),
    ("activation_memory", "KiB", 2**10),
    ("latency", "ms", 1e-3),
]
numbers = st.floats(1e-6, 1e12)


@given(st.sampled_from(UNITS), numbers, st.sampled_from(["<=", " <= ", "≤"]))
def test_number_times_unit(unit, number, sign):
    kind, name, factor = unit
    budget = parse_budget(f"{kind}{sign}{number!r}{name}")
    assert (budget.kind, budget.limit, budget.relative) == (kind, number * factor, False)


@given(st.sampled_from(["size", "bops"]), numbers)
def test_percent_is_a_share_of_the_reference(kind, number):
    budget = parse_budget(f"{kind}<={number!r}%")
    model = CostModel(small_setup())
    assert budget.relative
    assert budget.absolute(model) == number / 100 * model.reference[kind]


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused_by_our_error(text):
    with contextlib.suppress(BudgetError):
        assert parse_budget(text).kind in COST_KINDS


@pytest.mark.parametrize(
    "text",
    ["avg_bits<=4%", "act_bits<=1k", "size<=3", "size<=-1B", "size<=0B", "bops<=1e999", "bops<=1e308G",
     "speed<=3", "size<=1e-323%", "avg_bits<4", "avg_bits<=nan", "", "effective<=2", "effective>=0",
     "effective>=2%", "avg_bits>=4", "latency<=12", "latency<=3kB", "activation_memory<=4"],
)  # fmt: skip
def test_what_is_refused(text):
    with pytest.raises(BudgetError):
        parse_budget(text)


def test_no_budget_is_refused():
    with pytest.raises(BudgetError, match="no budget is given"):
        parse_budgets([])


@given(setups(), st.data())
def test_excess_is_relative_and_zero_at_the_limit(setup, data):
    model = CostModel(setup)
    costs = model.costs(data.draw(assignments(setup)))
    for kind in ("avg_bits", "size"):
        text = f"{kind}<={costs[kind]!r}{'B' if kind == 'size' else ''}"
        budgets = parse_budgets([text])
        assert excesses(budgets, model, costs) == {text: 0.0}
        doubled = {**costs, kind: 2 * costs[kind]}
        assert excesses(budgets, model, doubled)[text] == pytest.approx(1.0)


@given(setups(), st.data())
def test_the_compression_ratio_must_be_at_least_its_limit(setup, data):
    model = CostModel(setup)
    costs = model.costs(data.draw(assignments(setup)))
    if "effective" not in costs:
        with pytest.raises(BudgetError, match="MACs"):
            check_achievable(parse_budgets(["effective>=1"]), model)
        return
    budgets = parse_budgets([f"effective>={costs['effective']!r}"])
    check_achievable(budgets, model)
    assert list(excesses(budgets, model, costs).values()) == [0.0]
    half = {**costs, "effective": costs["effective"] / 2}
    assert list(excesses(budgets, model, half).values()) == [pytest.approx(1.0)]
    with pytest.raises(BudgetError, match="Lower the limit"):
        check_achievable(parse_budgets([f"effective>={1.01 * model.highest['effective']!r}"]), model)


@given(setups(), st.floats(0.5, 40), st.floats(1, 400))
def test_achievable_exactly_when_the_lowest_assignment_fits(setup, bits, percent):
    budgets = parse_budgets([f"avg_bits<={bits!r}", f"size<={percent!r}%"])
    model = CostModel(setup)
    fits = is_feasible(budgets, model, BitAssignment.extreme(setup, 0))
    if fits:
        check_achievable(budgets, model)
    else:
        with pytest.raises(BudgetError, match="Achievable"):
            check_achievable(budgets, model)


def test_a_share_of_nothing_is_refused():
    points = {p.id: p for p in small_setup().points.values() if p.kind == "activation"}
    setup = QuantizerSetup(points, {"gx": small_setup().groups["gx"]})
    with pytest.raises(BudgetError, match="which is 0"):
        check_achievable(parse_budgets(["bops<=50%"]), CostModel(setup))
