import math

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from raysearch.records import parse_budgets
from raysearch.search import STUDY_NAME, search_assignment, write_journal

from .problems import Divergence, make_setup, make_table


@pytest.fixture
def search():
    setup = make_setup(4)
    table = make_table(setup)
    budgets = parse_budgets(["avg_bits<=4", "size<=20%"])
    measure = Divergence(table, 0.4)

    def evaluate(batch):
        return {n: math.nan if n == 2 else value for n, value in measure(batch).items()}

    return setup, budgets, search_assignment(table, setup, budgets, evaluate, num_trials=24)


def test_optuna_opens_it_with_the_same_best(search, tmp_path):
    setup, budgets, result = search
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
        "setup_fingerprint": setup.fingerprint(),
    }
    for trial, record in zip(study.trials, result.trials, strict=True):
        assert trial.state.name == record.state
        assert trial.constraints == dict(record.excess)
        assert trial.user_attrs["source"] == record.source
        assert trial.user_attrs["costs"] == dict(record.costs)
