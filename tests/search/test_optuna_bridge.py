import math
from dataclasses import replace

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from raysearch.records import parse_budgets
from raysearch.search import STUDY_NAME, write_journal
from tests.support.search_problems import Divergence, make_setup, make_table, search


@pytest.fixture(scope="module")
def searched():
    setup = make_setup(4)
    table = make_table(setup)
    budgets = parse_budgets(["avg_bits<=4", "size<=20%"])
    measure = Divergence(table, 0.4)

    def evaluate(batch):
        return {n: math.nan if n == 2 else value for n, value in measure(batch).items()}

    return setup, budgets, search(table, setup, budgets, evaluate, num_trials=24)


def test_optuna_opens_it_with_the_same_best(searched, tmp_path):
    setup, budgets, result = searched
    path = tmp_path / "study.journal"
    path.write_text("an older file")
    write_journal(path, result.trials, setup, budgets)
    assert [entry.name for entry in tmp_path.iterdir()] == ["study.journal"]
    study = optuna.load_study(study_name=STUDY_NAME, storage=JournalStorage(JournalFileBackend(str(path))))
    assert study.best_trial.number == result.best.number
    assert study.best_value == result.best.value
    assert study.best_params == dict(result.best.assignment.bits)
    assert study.user_attrs == {
        "budgets": ["avg_bits<=4", "size<=20%"],
        "objective": "divergence",
        "setup_fingerprint": setup.fingerprint(),
    }
    for trial, record in zip(study.trials, result.trials, strict=True):
        assert trial.state.name == record.state
        assert trial.constraints == dict(record.excess)
        assert trial.user_attrs["source"] == record.source
        assert trial.user_attrs["costs"] == dict(record.costs)


def test_a_stopped_trial_and_a_front_are_there_with_their_values(searched, tmp_path):
    setup, budgets, result = searched
    stopped = replace(
        result.trials[5], state="PRUNED", num_samples=80, rounds={40: 1.5, 80: 1.25}, system_attrs={"mark": 1}
    )
    trials = (*result.trials[:5], stopped, *result.trials[6:])
    path = tmp_path / "study.journal"
    storage = JournalStorage(JournalFileBackend(str(path)))
    write_journal(path, trials, setup, budgets, objective="accuracy", maximize=True)
    study = optuna.load_study(study_name=STUDY_NAME, storage=storage)
    kept = study.trials[5]
    assert (study.direction.name, kept.state.name, kept.value) == ("MAXIMIZE", "PRUNED", stopped.value)
    assert kept.intermediate_values == {40: 1.5, 80: stopped.value}
    assert kept.system_attrs["mark"] == 1
    assert study.user_attrs["objective"] == "accuracy"

    write_journal(path, result.trials, setup, budgets, front="size")
    both = optuna.load_study(study_name=STUDY_NAME, storage=JournalStorage(JournalFileBackend(str(path))))
    found = {(trial.values[1], trial.values[0]) for trial in both.best_trials}
    assert found == {(trial.costs["size"], trial.value) for trial in result.front}
