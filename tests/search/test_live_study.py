"""The trials of a search in a storage of the user's."""

import traceback

import optuna
import pytest

from raysearch.config import SearchConfig
from raysearch.errors import ConfigError
from raysearch.records import parse_budgets
from raysearch.search import LiveStudy
from tests.support.run_records import make_search, make_setup


def test_trials_are_in_the_storage_as_they_come_and_once(tmp_path):
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    settings = SearchConfig(storage=url)
    setup, budgets = make_setup(2), parse_budgets(["avg_bits<=4"])
    trials = make_search(setup, 4).trials
    live = LiveStudy("run-1", setup, budgets, settings)
    for trial in trials[:3]:
        live.on_trial(trial, "divergence")
    again = LiveStudy("run-1", setup, budgets, settings)
    for trial in trials:
        again.on_trial(trial, "divergence")
    study = optuna.load_study(study_name="run-1", storage=url)
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3]
    assert [trial.state.name for trial in study.trials] == [str(trial.state.value) for trial in trials]
    assert study.user_attrs["budgets"] == ["avg_bits<=4"]
    starts = [trial.datetime_start for trial in study.trials]
    assert starts == sorted(starts)
    assert starts[1] == study.trials[0].datetime_complete
    with pytest.raises(ConfigError, match="of another model"):
        LiveStudy("run-1", make_setup(3), budgets, settings)


def test_a_storage_that_is_none_is_refused_without_its_password():
    settings = SearchConfig(storage="nobase://me:secret@host/db")
    with pytest.raises(ConfigError, match=r"search.storage cannot be used.*sqlite") as refused:
        LiveStudy("run-1", make_setup(2), (), settings)
    assert "secret" not in "".join(traceback.format_exception(refused.value))


def test_a_storage_that_is_not_writable_is_refused(tmp_path):
    setup, path = make_setup(2), tmp_path / "trials.db"
    LiveStudy("run-1", setup, (), SearchConfig(storage=f"sqlite:///{path}"))
    read_only = f"sqlite:///file:{path}?mode=ro&uri=true"
    with pytest.raises(ConfigError, match="must be writable"):
        LiveStudy("run-1", setup, (), SearchConfig(storage=read_only))
