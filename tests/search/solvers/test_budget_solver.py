import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysearch.errors import BudgetError
from raysearch.records import CostModel, check_achievable, is_feasible, parse_budgets
from raysearch.search import BudgetSolver, OptionSpace, make_limits
from tests.support.search_problems import every_assignment, make_hardware_setup, make_setup

UNITS = {"size": "B", "activation_memory": "B", "latency": "s"}


@st.composite
def instances(draw):
    if draw(st.booleans()):
        setup = make_hardware_setup(draw(st.integers(1, 4)), draw(st.integers(0, 99)), draw(st.booleans()))
    else:
        setup = make_setup(
            draw(st.integers(1, 3)),
            draw(st.sampled_from([(2, 4, 8), (8,), (3, 5)])),
            draw(st.sampled_from([(4, 8), (8,), (2, 4, 8)])),
            draw(st.integers(0, 20)),
        )
    model = CostModel(setup)
    every = [a for a in every_assignment(setup) if not setup.broken_pairs(a.bits)]
    witness = model.costs(every[draw(st.integers(0, len(every) - 1))])
    texts = []
    for kind in draw(st.lists(st.sampled_from(model.kinds), min_size=1, max_size=4, unique=True)):
        # At least what one assignment needs of everything, so the budgets can be met together.
        room = draw(st.sampled_from([0.0, 0.01, 0.2, 0.5])) * (model.highest[kind] - model.lowest[kind])
        if kind == "effective":
            texts.append(f"effective>={witness[kind] / (1 + room)!r}")
        else:
            texts.append(f"{kind}<={max(witness[kind] + room, 1e-9)!r}{UNITS.get(kind, '')}")
    return setup, model, parse_budgets(texts), draw(st.integers(0, 99))


def is_kept(setup, budgets, model, assignment):
    return is_feasible(budgets, model, assignment) and not setup.broken_pairs(assignment.bits)


def parts(setup, model, budgets):
    space = OptionSpace(setup)
    return space, BudgetSolver(space, make_limits(space, budgets, model))


@pytest.mark.slow
@given(instances())
@settings(max_examples=80, deadline=None)
def test_never_refuses_and_never_exceeds(instance):
    setup, model, budgets, seed = instance
    check_achievable(budgets, model)
    space, solver = parts(setup, model, budgets)
    costs = np.random.default_rng(seed).standard_normal(space.valid.shape)
    start = space.choices(every_assignment(setup)[-1])
    for choices in (
        solver.heuristic(costs),
        solver.exact(costs).choices,
        solver.greedy(costs),
        solver.repair(start, costs),
    ):
        assert solver.is_feasible(choices)
        assert is_feasible(budgets, model, space.assignment(choices))
        space.assignment(choices).check(setup)


@pytest.mark.slow
@given(instances())
@settings(max_examples=50, deadline=None)
def test_limits_draw_the_line_where_the_cost_model_does(instance):
    setup, model, budgets, _ = instance
    space, solver = parts(setup, model, budgets)
    every = every_assignment(setup)
    for assignment in every[:: max(1, len(every) // 30)]:
        choices = space.choices(assignment)
        assert space.assignment(choices) == assignment
        assert solver.is_feasible(choices) == is_kept(setup, budgets, model, assignment)
    kept = solver.feasible_choices(100_000)
    assert len(kept) == sum(is_kept(setup, budgets, model, assignment) for assignment in every)
    assert solver.feasible_choices(len(every) - 1) is None


@given(instances())
@settings(max_examples=50, deadline=None)
def test_the_optimum_of_several_budgets_is_that_of_brute_force(instance):
    setup, model, budgets, seed = instance
    space, solver = parts(setup, model, budgets)
    costs = np.random.default_rng(seed).exponential(size=space.valid.shape)
    costs[~space.valid] = 0.0
    values = costs[space.rows, solver.feasible_choices(100_000)].sum(axis=1)
    decoded = float(space.take(costs, solver.heuristic(costs)).sum())
    found = solver.exact(costs)
    assert found.value == pytest.approx(float(space.take(costs, found.choices).sum()))
    assert values.min() - 1e-9 <= found.value <= decoded + 1e-9
    assert found.value <= values.min() * (1 + 1e-4) + 1e-9
    assert found.lower_bound <= values.min() + 1e-9
    assert found.gap <= 2e-4


def test_repair_and_greedy_are_near_the_optimum_of_bit_operations():
    gaps = []
    for seed in range(20):
        setup = make_setup(4, (2, 4, 8), (4, 8), seed)
        model = CostModel(setup)
        limit = 0.7 * model.lowest["bops"] + 0.3 * model.highest["bops"]
        space, solver = parts(setup, model, parse_budgets([f"bops<={limit}"]))
        rng = np.random.default_rng(seed)
        costs = rng.exponential(size=(len(space.rows), 1)) * 4.0**-space.widths
        costs[~space.valid] = 0.0
        best = costs[space.rows, solver.feasible_choices(10**6)].sum(axis=1).min()
        gaps.append(float(space.take(costs, solver.heuristic(costs)).sum()) / best - 1)
    assert np.median(gaps) < 0.05


@given(instances(), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_changes_are_differences_of_use(instance, seed):
    setup, model, budgets, _ = instance
    space, solver = parts(setup, model, budgets)
    rng = np.random.default_rng(seed)
    choices = np.array([rng.integers(count) for count in space.valid.sum(axis=1)])
    for limit in solver.limits:
        changes = limit.changes(choices)
        for row, column in np.argwhere(space.valid):
            moved = choices.copy()
            moved[row] = column
            assert limit.use(moved) - limit.use(choices) == changes[row, column]


def test_a_pinned_width_makes_bit_operations_separable():
    setup = make_setup(3, (2, 4, 8), (8,))
    model = CostModel(setup)
    (limit,) = make_limits(OptionSpace(setup), parse_budgets(["bops<=40%"]), model)
    assert limit.is_separable
    assert limit.use(OptionSpace(setup).lowest) == model.lowest["bops"]


def test_an_impossible_fraction_is_refused():
    setup = make_setup(3)
    _, solver = parts(setup, CostModel(setup), parse_budgets(["avg_bits<=2.2"]))
    with pytest.raises(BudgetError, match=r"avg_bits<=2\.2.*below the smallest"):
        solver.scaled(0.5)


def test_what_costs_nothing_keeps_its_width():
    setup = make_setup(3, (2, 4, 8), (2, 8))
    space, solver = parts(setup, CostModel(setup), parse_budgets(["avg_bits<=8"]))
    widest = space.valid.sum(axis=1) - 1
    assert solver.heuristic(np.zeros(space.valid.shape)).tolist() == widest.tolist()
