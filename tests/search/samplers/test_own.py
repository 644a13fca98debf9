"""A sampler that a user brings, by its name."""

import optuna
import pytest

from raysearch.errors import ConfigError
from tests.contracts.sampler_contract import Problem, SamplerContract


class Backwards(optuna.samplers.RandomSampler):
    """Random, noting something in every trial that it reads again."""

    def sample_relative(self, study, trial, search_space):
        earlier = [t.system_attrs.get("note", 0) for t in study.get_trials(deepcopy=False)]
        study._storage.set_trial_system_attr(trial._trial_id, "note", max(earlier) + 1)
        return {}


class Seedless(optuna.samplers.RandomSampler):
    def __init__(self):
        super().__init__()


class TestOwn(SamplerContract):
    sampler = "tests.search.samplers.test_own:Backwards"

    def test_its_notes_are_kept(self, watched):
        sampled = [trial for trial in watched.result.trials if trial.source == self.sampler]
        assert [trial.system_attrs["note"] for trial in sampled] == list(range(1, len(sampled) + 1))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no_such_module:Sampler", "cannot be imported"),
        ("optuna.samplers:NoSampler", "cannot be imported"),
        ("optuna.samplers:PartialFixedSampler", "takes no seed="),
        ("tests.search.samplers.test_own:Seedless", "takes no seed="),
        ("collections:OrderedDict", "no subclass"),
        ("grid", "known: auto, thompson, tpe"),
    ],
)
def test_samplers_that_cannot_be_used(name, why):
    with pytest.raises(ConfigError, match=why):
        Problem.of_layers(2).search(name)
