import numpy as np
import pytest

from raysearch.errors import BudgetError
from raysearch.records import BitAssignment, CostModel, is_feasible, parse_budgets
from raysearch.records.costs.text import cost
from raysearch.search import OptionSpace, best_cost, check_budgets
from tests.support.search_problems import every_assignment, make_hardware_setup, make_setup


@pytest.mark.parametrize("seed", range(6))
def test_the_best_cost_under_the_others_is_that_of_brute_force(seed):
    setup = make_hardware_setup(3, seed)
    model, space = CostModel(setup), OptionSpace(setup)
    every = [model.costs(a) for a in every_assignment(setup) if not setup.broken_pairs(a.bits)]
    others = parse_budgets([f"bops<={np.median([c['bops'] for c in every])}"])
    kept = [c for c in every if c["bops"] <= others[0].limit]
    for kind in model.kinds:
        best = (max if kind == "effective" else min)(c[kind] for c in kept)
        assert best_cost(space, model, kind, others) == pytest.approx(best, rel=1e-4)


def test_budgets_that_fit_alone_but_not_together_say_what_would():
    setup = make_hardware_setup(3, 2)
    model = CostModel(setup)
    every = [a for a in every_assignment(setup) if not setup.broken_pairs(a.bits)]
    costs = [model.costs(a) for a in every]
    fastest = min(costs, key=lambda c: c["latency"])
    least_size = min(c["size"] for c in costs if c["latency"] <= fastest["latency"])
    assert least_size > model.lowest["size"]
    texts = [f"latency<={fastest['latency']!r}s", f"size<={least_size - 1}B"]
    with pytest.raises(BudgetError, match="cannot be met together") as caught:
        check_budgets(parse_budgets(texts), setup)
    assert f"the best while the others hold is {cost('size', least_size)}" in str(caught.value)
    check_budgets(parse_budgets([texts[0], f"size<={least_size}B"]), setup)


def test_a_single_budget_names_the_groups_that_hold_it_up():
    setup = make_setup(3)
    largest = max(setup.of_kind("weight").values(), key=lambda p: p.num_elements).id
    groups = dict(setup.groups)
    groups[largest] = type(groups[largest])(largest, (largest,), (8,))
    pinned = type(setup)(setup.points, groups)
    with pytest.raises(BudgetError, match=rf"Limited by '{largest}' \(only 8 bits, \d+\.\d%\)"):
        check_budgets(parse_budgets(["avg_bits<=2.1"]), pinned)


def test_what_a_setup_does_not_hold_is_refused_with_what_to_do():
    setup = make_setup(2)
    for text, answer in (("latency<=1ms", "--latency-profile"), ("activation_memory<=1kB", "Start the run")):
        with pytest.raises(BudgetError, match=answer):
            check_budgets(parse_budgets([text]), setup)


@pytest.mark.parametrize("seed", range(4))
def test_shares_add_up_to_the_cost(seed):
    setup = make_hardware_setup(3, seed)
    model = CostModel(setup)
    assignment = BitAssignment.extreme(setup, 0)
    for kind in model.kinds:
        total = sum(model.shares(kind, assignment).values())
        if kind == "effective":
            total = 8 * sum(p.macs for p in setup.of_kind("weight").values()) / total
        assert total == pytest.approx(model.costs(assignment)[kind])
    assert is_feasible(parse_budgets(["avg_bits<=2"]), model, assignment)
