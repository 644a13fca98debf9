from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysearch.errors import ConfigError, DataError, StorageError
from raysearch.records import CostModel, SearchTrial, SensitivityTable, parse_budgets
from raysearch.search import (
    SURROGATES,
    BudgetSolver,
    OptionSpace,
    make_limits,
    make_surrogate,
    surrogate_agreement,
)
from raysearch.search.solvers import local_search, quadratic
from raysearch.search.solvers.local_search import descend
from tests.support.search_problems import every_assignment, make_setup, make_table


def fisher_table(setup, seed=0, **options):
    """The table, its traces measured by the estimator "fisher"."""
    table = make_table(setup, seed, is_rounded=True, **options)
    return replace(table, traces={n: replace(t, estimator="fisher") for n, t in table.traces.items()})


def test_responses_without_padding_are_the_memory_of_the_table():
    setup = make_setup(3, weight_bits=(4, 8), activation_bits=(4, 8))
    table = make_table(setup)
    assert np.shares_memory(make_surrogate("response", table, OptionSpace(setup)).gram, table.gram)
    uneven = make_setup(3, weight_bits=(2, 4, 8), activation_bits=(4, 8))
    table = make_table(uneven)
    padded = make_surrogate("response", table, OptionSpace(uneven))
    assert np.array_equal(padded.gram[padded.gram != 0], table.gram[table.gram != 0])


def test_the_quadratic_form_is_the_sum_over_pairs():
    setup = make_setup(3, activation_bits=(4, 8))
    table, space = make_table(setup), OptionSpace(setup)
    index = {option: i for i, option in enumerate(table.effects)}
    every = every_assignment(setup)
    predicted = make_surrogate("response", table, space).predict(np.stack([space.choices(a) for a in every]))
    for assignment, value in zip(every, predicted, strict=True):
        chosen = [index[option] for option in assignment.bits.items()]
        assert value == pytest.approx(0.5 * sum(table.gram[q, r] for q in chosen for r in chosen))


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("single-loss", "divergence"),
        ("hawq", "omega"),
        ("fisher", "omega"),
        ("weight-error", "perturbation"),
        ("second-moment", "second_moment"),
    ],
)
def test_additive_scores_sum_their_field(name, field):
    setup = make_setup(3)
    table, space = fisher_table(setup), OptionSpace(setup)
    surrogate = make_surrogate(name, table, space)
    low, high = every_assignment(setup)[0], every_assignment(setup)[-1]
    # The pinned activations are the same in both, whatever they count.
    difference = surrogate.predict(space.choices(low)) - surrogate.predict(space.choices(high))
    expected = sum(
        getattr(table.effects[g, low.bits[g]], field) - getattr(table.effects[g, high.bits[g]], field)
        for g in setup.groups
    )
    assert difference == pytest.approx(expected)


@pytest.mark.parametrize("name", ["hawq", "fisher", "second-moment", "weight-error"])
def test_activations_count_their_response_in_the_unit_of_the_weights(name):
    setup = make_setup(3, activation_bits=(4, 8))
    table, space = fisher_table(setup), OptionSpace(setup)
    costs = make_surrogate(name, table, space).option_costs
    effects = [e for e in table.effects.values() if e.kind == "weight"]
    weights = costs[space.is_weight].sum()
    row = space.groups.index("layer1.input")
    share = table.effects["layer1.input", 4].response / sum(e.response for e in effects)
    assert costs[row, 0] == pytest.approx(share * weights)


def test_the_order_of_the_table_does_not_matter():
    setup = make_setup(3)
    table, space = make_table(setup), OptionSpace(setup)
    order = list(reversed(range(len(table.effects))))
    options = list(table.effects)
    turned = SensitivityTable(
        table.traces,
        {options[i]: table.effects[options[i]] for i in order},
        table.gram[np.ix_(order, order)],
        "turned",
    )
    one, other = (make_surrogate("response", t, space) for t in (table, turned))
    assert np.array_equal(one.gram, other.gram)
    assert np.array_equal(one.option_costs, other.option_costs)


def test_many_assignments_are_scored_as_one_by_one(monkeypatch):
    monkeypatch.setattr("raysearch.search.problem.surrogates._AT_ONCE", 5)
    setup = make_setup(3, activation_bits=(4, 8))
    space = OptionSpace(setup)
    surrogate = make_surrogate("response", make_table(setup), space)
    choices = np.stack([space.choices(a) for a in every_assignment(setup)[:24]]).reshape(2, 3, 4, -1)
    predicted = surrogate.predict(choices)
    assert predicted.shape == (2, 3, 4)
    for index in np.ndindex(predicted.shape):
        assert predicted[index] == pytest.approx(float(surrogate.predict(choices[index])), rel=1e-12)


@pytest.mark.parametrize("estimator", ["hessian", "ggn", ""])
def test_fisher_wants_traces_of_the_fisher_matrix(estimator):
    setup = make_setup(2)
    table = make_table(setup)
    traces = {n: replace(t, estimator=estimator) for n, t in table.traces.items()}
    message = rf"estimator '{estimator or 'unknown'}'.*sensitivity\.estimator to 'fisher'"
    with pytest.raises(ConfigError, match=message):
        make_surrogate("fisher", replace(table, traces=traces), OptionSpace(setup))


def test_second_moments_that_nobody_took_are_refused_by_name():
    setup = make_setup(2)
    table, space = make_table(setup), OptionSpace(setup)
    with pytest.raises(DataError, match=r"nothing is known of 'layer0\.weight'.*rounding\.method to 'gptq'"):
        make_surrogate("second-moment", table, space)
    low, high = every_assignment(setup)[0], every_assignment(setup)[-1]
    trials = [
        SearchTrial(number, assignment, {}, {}, value, value, "made up")
        for number, (assignment, value) in enumerate([(low, 2.0), (high, 1.0)])
    ]
    assert "second-moment" not in surrogate_agreement(trials, table, space)
    rounded = make_table(setup, is_rounded=True)
    assert surrogate_agreement(trials, rounded, space)["second-moment"] == pytest.approx(1)


def test_refusals():
    setup = make_setup(2)
    table, space = make_table(setup), OptionSpace(setup)
    with pytest.raises(ConfigError, match="response, hawq"):
        make_surrogate("hessian", table, space)
    with pytest.raises(StorageError, match=r"'layer0\.weight' at 3 bits"):
        make_surrogate("response", table, OptionSpace(make_setup(2, (3, 4))))
    broken = {
        o: replace(e, omega=float("nan") if o == ("layer1.weight", 4) else e.omega)
        for o, e in table.effects.items()
    }
    with pytest.raises(DataError, match=r"omega of 'layer1\.weight' at 4 bits is nan"):
        make_surrogate("hawq", replace(table, effects=broken), space)


@given(
    st.integers(0, 30),
    st.sampled_from(["avg_bits", "bops"]),
    st.sampled_from(SURROGATES),
)
@settings(max_examples=40, deadline=None)
def test_descent_ends_in_a_feasible_local_optimum(seed, kind, name):
    setup = make_setup(3, (2, 4, 8), (4, 8), seed)
    table, space = fisher_table(setup, seed, coupling=1.5), OptionSpace(setup)
    model = CostModel(setup)
    limit = 0.7 * model.lowest[kind] + 0.3 * model.highest[kind]
    solver = BudgetSolver(space, make_limits(space, parse_budgets([f"{kind}<={limit}"]), model))
    surrogate = make_surrogate(name, table, space)
    extra = 0.01 * np.random.default_rng(seed).standard_normal(space.valid.shape)

    def score(choices):
        return float(surrogate.predict(choices) + space.take(extra, choices).sum())

    start = solver.greedy(surrogate.option_costs)
    end = descend(surrogate, solver, start, extra)
    assert solver.is_feasible(end)
    assert score(end) <= score(start) + 1e-12
    every = solver.feasible_choices(10**6)
    moved = every[(every != end).sum(axis=1) == 1]
    assert all(score(end) <= score(choices) + 1e-9 for choices in moved)
    two = every[(every != end).sum(axis=1) == 2]
    rise = np.sort((two - end), axis=1)
    swaps = two[(rise[:, 0] < 0) & (rise[:, -1] > 0)]
    assert all(score(end) <= score(choices) + 1e-9 for choices in swaps)


def test_large_spaces_are_looked_at_in_pieces_with_the_same_answer(monkeypatch):
    setup = make_setup(6, activation_bits=(4, 8))
    space = OptionSpace(setup)
    surrogate = make_surrogate("response", make_table(setup), space)
    solver = BudgetSolver(space, make_limits(space, parse_budgets(["avg_bits<=4"]), CostModel(setup)))
    whole = descend(surrogate, solver, space.lowest), quadratic.bound_cross_terms(surrogate, solver)
    monkeypatch.setattr(local_search, "ROWS_AT_ONCE", 5)
    monkeypatch.setattr(quadratic, "ROWS_AT_ONCE", 5)
    pieces = descend(surrogate, solver, space.lowest), quadratic.bound_cross_terms(surrogate, solver)
    assert pieces[0].tolist() == whole[0].tolist()
    assert pieces[1] == whole[1]
    monkeypatch.setattr(local_search, "MAX_SWAPPED", 2)
    assert solver.is_feasible(descend(surrogate, solver, space.lowest))
