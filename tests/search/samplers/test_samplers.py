"""What every sampler keeps, whoever wrote it."""

import optuna
import pytest

from raysearch.errors import ConfigError
from raysearch.records import CostModel, is_feasible, parse_budgets, trials_from_table, trials_to_table
from raysearch.search import Decoder, OptionSpace, make_limits, make_surrogate, search_assignment
from raysearch.search.samplers.make import make_samplers
from tests.support.search_problems import Divergence, every_assignment, make_setup, make_table

SETUP = make_setup(5, (2, 4, 8), (4, 8))
TABLE = make_table(SETUP, coupling=1.0)
BUDGETS = parse_budgets(["avg_bits<=4.5", "bops<=70%"])
OWN = "tests.search.samplers.test_samplers:Backwards"


class Backwards(optuna.samplers.RandomSampler):
    """A user's sampler: random, noting something in every trial that it reads again."""

    def sample_relative(self, study, trial, search_space):
        earlier = [t.system_attrs.get("mark", 0) for t in study.get_trials(deepcopy=False)]
        study._storage.set_trial_system_attr(trial._trial_id, "mark", max(earlier) + 1)
        return {}


class Seedless(optuna.samplers.RandomSampler):
    def __init__(self):
        super().__init__()


def run(sampler, evaluate=None, setup=SETUP, **options):
    table = TABLE if setup is SETUP else make_table(setup)
    measure = evaluate or Divergence(table, disturbance=0.4)
    return search_assignment(
        table, setup, BUDGETS, measure, sampler=sampler, **{"num_trials": 24, "batch_size": 4, **options}
    )


class SamplerContract:
    """Feasible, measured once, repeatable, and the same run after an interruption at any batch."""

    sampler: str
    num_trials = 24

    @pytest.fixture(scope="class")
    @classmethod
    def whole(cls):
        saved = []
        return run(cls.sampler, on_batch=saved.append, num_trials=cls.num_trials), saved

    def test_every_trial_is_feasible_and_measured_once(self, whole):
        result, _ = whole
        model = CostModel(SETUP)
        assert all(is_feasible(BUDGETS, model, trial.assignment) for trial in result.trials)
        counted = Divergence(TABLE, disturbance=0.4)
        assert run(self.sampler, counted, num_trials=self.num_trials) == result
        assert counted.calls == len({trial.assignment.digest() for trial in result.trials})

    def test_it_proposes_something_of_its_own_and_never_loses_to_a_warm_start(self, whole):
        result, _ = whole
        name = "thompson" if self.sampler == "auto" else self.sampler
        assert name in {trial.source for trial in result.trials}
        assert min(result.margins().values()) == 0

    def test_resumed_at_any_batch_it_is_the_same_run(self, whole):
        result, saved = whole
        for trials in saved[3::2]:
            again = trials_from_table(trials_to_table(trials))
            assert run(self.sampler, previous=again, num_trials=self.num_trials) == result


class TestThompson(SamplerContract):
    sampler = "auto"


class TestTpe(SamplerContract):
    sampler = "tpe"


class TestNsga2(SamplerContract):
    sampler = "nsga2"
    num_trials = 32

    def test_generations_are_kept_in_the_trials(self, whole):
        generations = [max(t.system_attrs.values()) for t in whole[0].trials if t.system_attrs]
        assert max(generations) >= 1


class TestRandom(SamplerContract):
    sampler = "random"


class TestOwn(SamplerContract):
    sampler = OWN

    def test_its_notes_are_kept(self, whole):
        sampled = [trial for trial in whole[0].trials if trial.source == OWN]
        assert [trial.system_attrs["mark"] for trial in sampled] == list(range(1, len(sampled) + 1))


def test_gp_proposes_and_goes_on_as_it_would_have():
    whole = run("gp", num_trials=12)
    assert "gp" in {trial.source for trial in whole.trials}
    assert run("gp", num_trials=12, previous=trials_from_table(trials_to_table(whole.trials[:8]))) == whole


def test_gp_warns_where_it_is_slow():
    space = OptionSpace(SETUP)
    decoder = Decoder(space, make_limits(space, BUDGETS, CostModel(SETUP)))
    scores = make_surrogate("response", TABLE, space)
    with pytest.warns(UserWarning, match="'gp' with 101 trials"):
        make_samplers("gp", scores, decoder, 0, num_trials=101)


def test_brute_measures_every_feasible_assignment_and_no_other():
    setup = make_setup(3, (2, 4, 8), (4, 8))
    table = make_table(setup, coupling=1.0)
    measure, model = Divergence(table, disturbance=0.4), CostModel(setup)
    every = {a.digest() for a in every_assignment(setup) if is_feasible(BUDGETS, model, a)}

    def brute(num_trials, previous=()):
        return search_assignment(
            table, setup, BUDGETS, measure, num_trials=num_trials, sampler="brute", previous=previous
        )

    result = brute(len(every))
    assert {trial.assignment.digest() for trial in result.trials} == every
    assert measure.calls == len(every) == len(result.trials)
    assert brute(len(every), result.trials[:8]) == result
    with pytest.raises(ConfigError, match=rf"all {len(every)} assignments.*num_trials is {len(every) - 1}"):
        brute(len(every) - 1)
    with pytest.raises(ConfigError, match="lists every assignment"):
        run("brute", setup=make_setup(12, (2, 3, 4, 8)))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no_such_module:Sampler", "cannot be imported"),
        ("optuna.samplers:NoSampler", "cannot be imported"),
        ("optuna.samplers:PartialFixedSampler", "takes no seed="),
        ("tests.search.samplers.test_samplers:Seedless", "takes no seed="),
        ("collections:OrderedDict", "no subclass"),
        ("grid", "known: auto, thompson, tpe"),
    ],
)
def test_samplers_that_cannot_be_used(name, why):
    with pytest.raises(ConfigError, match=why):
        run(name)


@pytest.mark.parametrize("sampler", ["auto", "nsga2"])
def test_a_front_spreads_over_the_sizes(sampler):
    saved = []
    result = run(sampler, front="size", on_batch=saved.append)
    single = run(sampler)
    sizes = [trial.costs["size"] for trial in result.front]
    assert result.front_cost == "size"
    assert sizes == sorted(set(sizes))
    assert len(result.front) >= len(single.front)
    assert run(sampler, front="size", previous=trials_from_table(trials_to_table(saved[5]))) == result
