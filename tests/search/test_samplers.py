"""What every sampler keeps, whoever wrote it."""

import optuna
import pytest

from raysearch.errors import ConfigError
from raysearch.records import CostModel, is_feasible, parse_budgets, trials_from_table, trials_to_table
from raysearch.search import search_assignment

from .problems import Divergence, every_assignment, make_setup, make_table

SETUP = make_setup(3, (2, 4, 8), (4, 8))
TABLE = make_table(SETUP, coupling=1.0)
BUDGETS = parse_budgets(["avg_bits<=4.5", "bops<=70%"])
OWN = "tests.search.test_samplers:Backwards"


class Backwards(optuna.samplers.RandomSampler):
    """A user's sampler: random, noting something in every trial that it reads again."""

    def sample_relative(self, study, trial, search_space):
        earlier = [t.system_attrs.get("mark", 0) for t in study.get_trials(deepcopy=False)]
        study._storage.set_trial_system_attr(trial._trial_id, "mark", max(earlier) + 1)
        return {}


class Seedless(optuna.samplers.RandomSampler):
    def __init__(self):
        super().__init__()


def run(sampler, evaluate=None, **options):
    measure = evaluate or Divergence(TABLE, disturbance=0.4)
    return search_assignment(
        TABLE, SETUP, BUDGETS, measure, sampler=sampler, **{"num_trials": 44, "batch_size": 4, **options}
    )


class SamplerContract:
    """Feasible, measured once, repeatable, and the same run after an interruption at any batch."""

    sampler: str
    options: dict = {}

    @pytest.fixture(scope="class")
    def whole(self):
        saved = []
        return run(self.sampler, on_batch=saved.append, **self.options), saved

    def test_every_trial_is_feasible_and_measured_once(self, whole):
        result, _ = whole
        model = CostModel(SETUP)
        assert all(is_feasible(BUDGETS, model, trial.assignment) for trial in result.trials)
        counted = Divergence(TABLE, disturbance=0.4)
        assert run(self.sampler, counted, **self.options) == result
        assert counted.calls == len({trial.assignment.digest() for trial in result.trials})

    def test_it_proposes_something_of_its_own_and_never_loses_to_a_warm_start(self, whole):
        result, _ = whole
        name = "thompson" if self.sampler == "auto" else self.sampler
        assert name in {trial.source for trial in result.trials}
        assert min(result.margins().values()) == 0

    def test_resumed_at_any_batch_it_is_the_same_run(self, whole):
        result, saved = whole
        for trials in saved[3::3]:
            again = trials_from_table(trials_to_table(trials))
            assert run(self.sampler, previous=again, **self.options) == result


class TestThompson(SamplerContract):
    sampler = "auto"


class TestTpe(SamplerContract):
    sampler = "tpe"


class TestNsga2(SamplerContract):
    sampler = "nsga2"

    def test_generations_are_kept_in_the_trials(self, whole):
        generations = [max(t.system_attrs.values()) for t in whole[0].trials if t.system_attrs]
        assert max(generations) >= 1


class TestRandom(SamplerContract):
    sampler = "random"


class TestOwn(SamplerContract):
    sampler = OWN

    def test_its_notes_are_kept(self, whole):
        assert [trial.system_attrs["mark"] for trial in whole[0].trials] == list(range(1, 45))


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
class TestGp(SamplerContract):
    sampler = "gp"
    options = {"num_trials": 22}


def test_gp_warns_where_it_is_slow():
    with pytest.warns(UserWarning, match="'gp' with 101 trials"):
        from raysearch.search import Decoder, OptionSpace, make_limits, make_surrogate
        from raysearch.search.samplers import make_samplers

        space = OptionSpace(SETUP)
        decoder = Decoder(space, make_limits(space, BUDGETS, CostModel(SETUP)))
        make_samplers("gp", make_surrogate("response", TABLE, space), decoder, 0, num_trials=101)


def test_brute_measures_every_feasible_assignment_and_no_other():
    model = CostModel(SETUP)
    every = {a.digest() for a in every_assignment(SETUP) if is_feasible(BUDGETS, model, a)}
    measure = Divergence(TABLE, disturbance=0.4)
    result = run("brute", measure, num_trials=len(every))
    assert {trial.assignment.digest() for trial in result.trials} == every
    assert measure.calls == len(every) == len(result.trials)
    half = result.trials[: len(every) // 8 * 4]
    assert run("brute", num_trials=len(every), previous=half) == result
    with pytest.raises(ConfigError, match=rf"all {len(every)} assignments.*num_trials is 44"):
        run("brute")
    large = make_setup(12, (2, 3, 4, 8))
    with pytest.raises(ConfigError, match="lists every assignment"):
        search_assignment(make_table(large), large, BUDGETS[:1], measure, sampler="brute")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no_such_module:Sampler", "cannot be imported"),
        ("optuna.samplers:NoSampler", "cannot be imported"),
        ("optuna.samplers:PartialFixedSampler", "takes no seed="),
        ("tests.search.test_samplers:Seedless", "takes no seed="),
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
