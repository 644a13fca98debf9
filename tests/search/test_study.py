import math
import random
from itertools import pairwise

import numpy as np
import optuna
import pytest

from raysearch.errors import BudgetError, ConfigError, RunError, StorageError
from raysearch.records import (
    BitAssignment,
    CostModel,
    is_feasible,
    parse_budgets,
    trials_from_table,
    trials_to_table,
)
from raysearch.search import (
    SURROGATES,
    BudgetSolver,
    OptionSpace,
    check_sampler,
    make_limits,
    make_surrogate,
)
from raysearch.search.warm_starts import distinct, warm_starts
from tests.support.search_problems import (
    Divergence,
    every_assignment,
    make_hardware_setup,
    make_setup,
    make_table,
    search,
)

BUDGETS = parse_budgets(["avg_bits<=4.5"])
TWO_BUDGETS = parse_budgets(["avg_bits<=4.5", "bops<=60%"])
"""For what depends on them: warm starts under these need a solver, and a search ten times as long."""
SETUP = make_setup(5, (2, 3, 4, 8), (4, 8))
TABLE = make_table(SETUP, coupling=1.0, is_rounded=True)
MEASURE = Divergence(TABLE, disturbance=0.4)
SMALL = {"num_trials": 32, "batch_size": 4}


def run(*, budgets=BUDGETS, evaluate=MEASURE, **options):
    return search(TABLE, SETUP, budgets, evaluate, **{**SMALL, **options})


def feasible_uniforms():
    model = CostModel(SETUP)
    uniforms = [BitAssignment.uniform(SETUP, bits) for bits in (2, 3, 4, 8)]
    return [u for u in uniforms if is_feasible(TWO_BUDGETS, model, u)]


@pytest.mark.parametrize("seed", range(3))
def test_near_the_optimum_by_brute_force(seed):
    setup = make_setup(4, (2, 4, 8), (4, 8), seed)
    table = make_table(setup, seed, coupling=1.0)
    measure = Divergence(table, disturbance=0.3, seed=seed)
    budgets = parse_budgets(["size<=18%"])
    model = CostModel(setup)
    best = min(measure.value(a) for a in every_assignment(setup) if is_feasible(budgets, model, a))
    result = search(table, setup, budgets, measure, num_trials=64)
    assert result.best.value <= best * 1.02


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["auto", "tpe", "random"])
@pytest.mark.parametrize("budgets", [["avg_bits<=4"], ["bops<=50%"], ["size<=16%", "act_bits<=6"]], ids=str)
def test_every_trial_keeps_every_budget(sampler, budgets):
    parsed = parse_budgets(budgets)
    result = search(TABLE, SETUP, parsed, MEASURE, num_trials=24, sampler=sampler)
    model = CostModel(SETUP)
    assert [trial.number for trial in result.trials] == list(range(24))
    for trial in result.trials:
        assert set(trial.excess) == set(budgets)
        assert all(excess <= 0 for excess in trial.excess.values())
        assert is_feasible(parsed, model, trial.assignment)
        assert trial.costs == model.costs(trial.assignment)
        assert trial.value == MEASURE.value(trial.assignment)
    assert {"auto": "thompson"}.get(sampler, sampler) in {trial.source for trial in result.trials}


@pytest.mark.slow
@pytest.mark.parametrize("surrogate", [name for name in SURROGATES if name != "fisher"])
def test_never_worse_than_any_uniform_or_warm_start(surrogate):
    result = run(budgets=TWO_BUDGETS, surrogate=surrogate, num_trials=1)
    assert feasible_uniforms()
    for uniform in feasible_uniforms():
        assert result.best.value <= MEASURE.value(uniform)
    longer = run(budgets=TWO_BUDGETS, surrogate=surrogate)
    assert longer.best.value <= result.best.value
    assert longer.best.value == min(longer.reasons.values())
    required = {"quadratic", "uniform 2", "additive", "hawq", "weight-error", "single-loss", "greedy"}
    assert required <= set(result.reasons)
    assert {"quadratic 95%", "hawq 95%", "single-loss 90%"} <= set(longer.reasons)
    assert longer.surrogate == surrogate


@pytest.mark.slow
@pytest.mark.parametrize("surrogate", [name for name in SURROGATES if name != "fisher"])
def test_the_bound_is_below_every_prediction_and_the_gap_says_how_far(surrogate):
    space, model = OptionSpace(SETUP), CostModel(SETUP)
    result = run(budgets=TWO_BUDGETS, surrogate=surrogate, num_trials=1)
    every = np.stack(
        [space.choices(a) for a in every_assignment(SETUP) if is_feasible(TWO_BUDGETS, model, a)]
    )
    least = make_surrogate(surrogate, TABLE, space).predict(every).min()
    assert 0 < result.lower_bound <= least * (1 + 1e-9)
    assert result.lower_bound >= least * (1 - result.gap) * (1 - 1e-9)
    assert min(trial.predicted for trial in result.trials) == pytest.approx(least)
    assert result.gap < 1e-3


@pytest.mark.parametrize("num_trials", [1, 13, 40])
def test_beyond_the_required_warm_starts_half_of_the_trials_are_the_samplers(num_trials):
    trials = run(num_trials=num_trials).trials
    sampled = [trial.number for trial in trials if trial.source == "thompson"]
    first = sampled[0] if sampled else len(trials)
    assert not any("%" in trial.source for trial in trials[:first])
    rest = trials[first:]
    assert len(trials) == max(num_trials, first)
    assert sum(t.source == "thompson" for t in rest) * 2 >= len(rest)


@pytest.mark.slow
def test_resumed_at_any_batch_it_is_the_same_run():
    """Of every other batch, and of every sampler, the contract of samplers says the same."""
    saved = []
    result = run(on_batch=saved.append)
    assert saved[-1] == result.trials
    for trials in saved:
        counted = Divergence(TABLE, disturbance=0.4)
        again = trials_from_table(trials_to_table(trials))
        assert run(previous=again, evaluate=counted) == result
        new = {t.assignment.digest() for t in result.trials} - {t.assignment.digest() for t in trials}
        assert counted.calls == len(new)


@pytest.mark.parametrize("cut", [3, 21, 30])
def test_a_partial_batch_is_asked_again_and_not_measured_again(cut):
    result = run()
    counted = Divergence(TABLE, disturbance=0.4)
    assert run(previous=result.trials[:cut], evaluate=counted) == result
    assert counted.calls == len({t.assignment.digest() for t in result.trials[cut:]})


def test_more_trials_continue_a_finished_run():
    short = run(num_trials=22)
    assert run(previous=short.trials) == run()


def test_the_order_of_the_values_does_not_matter():
    def shuffled(batch):
        items = list(MEASURE(batch).items())
        random.shuffle(items)
        return dict(items)

    assert run(evaluate=shuffled) == run()


def test_a_batch_is_measured_once_and_has_the_asked_size():
    sizes, seen = [], set()

    def watched(batch):
        sizes.append(len(batch))
        keys = {assignment.digest() for assignment in batch.values()}
        assert len(keys) == len(batch)
        assert not keys & seen
        seen.update(keys)
        return MEASURE(batch)

    result = run(evaluate=watched)
    assert max(sizes) <= 4
    assert len(seen) == len({t.assignment.digest() for t in result.trials})


def test_failed_trials_are_told_and_the_search_goes_on():
    def fragile(batch):
        return {n: math.nan if n % 3 == 1 else value for n, value in MEASURE(batch).items()}

    result = run(evaluate=fragile)
    failed = [trial for trial in result.trials if trial.state == "FAIL"]
    assert failed
    assert all(math.isnan(trial.value) for trial in failed)
    assert len(result.trials) == 32
    assert result.best.state == "COMPLETE"
    assert all(trial.state == "COMPLETE" for trial in result.front)
    assert repr(run(evaluate=fragile, previous=result.trials[:12])) == repr(result)


def test_mostly_failing_is_an_error_that_says_what_was_seen():
    saved = []
    with pytest.raises(RunError, match=r"8 of 8 trials gave no finite .* 0 \(quadratic\)"):
        run(evaluate=lambda batch: dict.fromkeys(batch, math.inf), on_batch=saved.append)
    assert len(saved[-1]) == 8


def test_a_missing_value_is_named():
    with pytest.raises(RunError, match=r"no value for the trials \[1\]"):
        run(evaluate=lambda batch: {n: v for n, v in MEASURE(batch).items() if n != 1})


@pytest.mark.parametrize("sampler", ["auto", "tpe", "random"])
def test_a_small_space_ends_when_it_is_used_up(sampler):
    setup = make_setup(2, (2, 4), (8,))
    table = make_table(setup)
    measure = Divergence(table)
    result = search(table, setup, parse_budgets(["avg_bits<=3.9"]), measure, sampler=sampler)
    distinct_trials = {t.assignment.digest() for t in result.trials}
    model = CostModel(setup)
    every = [a for a in every_assignment(setup) if is_feasible(parse_budgets(["avg_bits<=3.9"]), model, a)]
    assert len(distinct_trials) == len(every) == measure.calls
    assert len(result.trials) < 64
    assert result.best.value == min(map(measure.value, every))


def test_thompson_uses_up_a_small_space():
    setup = make_setup(3, (2, 4, 8), (8,))
    table = make_table(setup)
    result = search(table, setup, parse_budgets(["avg_bits<=8"]), Divergence(table), num_trials=64)
    assert len({t.assignment.digest() for t in result.trials}) == 27


def test_front_and_ties():
    result = run(evaluate=lambda batch: dict.fromkeys(batch, 1.0))
    sizes = [trial.costs["size"] for trial in result.trials]
    assert result.best.costs["size"] == min(sizes)
    assert result.front == (result.best,)
    front = run().front
    for one, other in pairwise(front):
        assert one.costs["size"] < other.costs["size"]
        assert one.value > other.value


def test_enqueued_assignments_are_measured():
    lowest = BitAssignment.extreme(SETUP, 0)
    odd = BitAssignment({**lowest.bits, "layer2.weight": 3})
    result = run(num_trials=1, enqueue=[odd])
    assert result.reasons["enqueued 0"] == MEASURE.value(odd)
    with pytest.raises(BudgetError, match=r"enqueued assignment 0 exceeds the budget avg_bits<=4\.5"):
        run(enqueue=[BitAssignment.extreme(SETUP, -1)])


def test_refusals():
    with pytest.raises(ConfigError, match=r"search\.num_trials' is 0: .* greater than or equal to 1"):
        run(num_trials=0)
    with pytest.raises(ConfigError, match="sampler 'cma' is unknown; known: auto"):
        check_sampler("cma")
    with pytest.raises(BudgetError, match="cannot be met"):
        search(TABLE, SETUP, parse_budgets(["avg_bits<=1"]), MEASURE)


def test_trials_of_another_search_are_refused():
    trials = run(num_trials=12).trials
    with pytest.raises(StorageError, match="not numbered"):
        run(previous=trials[1:])
    with pytest.raises(StorageError, match="belongs to another search"):
        search(TABLE, SETUP, parse_budgets(["avg_bits<=2.5"]), MEASURE, previous=trials)


@pytest.mark.slow
def test_seeds_differ_and_repeat():
    assert run(seed=1) == run(seed=1)
    assert run(seed=1).trials != run(seed=2).trials


def test_scale_of_the_surrogate_does_not_matter():
    scaled = Divergence(TABLE, disturbance=0.4)

    def thousandfold(batch):
        return {n: 1024 * value for n, value in scaled(batch).items()}

    one = [trial.assignment for trial in run().trials]
    assert [trial.assignment for trial in run(evaluate=thousandfold).trials] == one


def test_the_verbosity_of_optuna_is_left_as_it_was():
    before = optuna.logging.get_verbosity()
    seen = []

    def watch(batch):
        seen.append(optuna.logging.get_verbosity())
        return MEASURE(batch)

    run(evaluate=watch, num_trials=8)
    assert {before, *seen} == {optuna.logging.get_verbosity()}


def test_distinct_keeps_the_first_name():
    space = OptionSpace(SETUP)
    solver = BudgetSolver(space, make_limits(space, BUDGETS, CostModel(SETUP)))
    starts, _ = warm_starts(TABLE, make_surrogate("response", TABLE, space), solver)
    starts_left = distinct([*starts, *starts])
    assert [start.source for start in starts_left] == [start.source for start in distinct(starts)]
    assert len({start.choices.tobytes() for start in starts_left}) == len(starts_left)


@pytest.mark.slow
def test_a_front_ends_where_the_other_budgets_leave_no_assignment():
    setup = make_hardware_setup(4, 0)
    table = make_table(setup, 0, coupling=1.0)
    model = CostModel(setup)
    low, high = model.lowest["latency"], model.highest["latency"]
    budgets = parse_budgets([f"latency<={low + 0.6 * (high - low)}s"])
    result = search(table, setup, budgets, Divergence(table), front="bops", num_trials=32)
    assert all(trial.is_feasible for trial in result.trials)
    assert len(result.front) > 1
