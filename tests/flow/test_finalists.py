"""The best assignments are trained shortly, and the one that is best then is what the run gives."""

import json

import pytest

import raysearch
from raysearch.artifacts import RunStore, codecs, resolve_run
from raysearch.errors import ConfigError
from raysearch.pipeline.finalists import best_trials
from raysearch.pipeline.inputs import check_inputs
from raysearch.pipeline.reuse import EarlierRun
from raysearch.training import finalists
from tests.support import toy_task
from tests.support.command_line import QUICK

pytestmark = pytest.mark.slow

FACTORY = "tests/support/toy_task.py:make_task"
SETTINGS = [
    *QUICK,
    'export.targets=["packed"]',
    "training.epochs=1",
    "search.finalists_trained=3",
    "search.finalists_steps=2",
    "validation.baselines=false",
]


def run(storage, run_id, budget=(), task=FACTORY, changes=(), **options):
    config = raysearch.load_config(assignments=[*SETTINGS, *changes])
    return raysearch.run(task, budget, storage, config=config, run_id=run_id, workers=0, **options)


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """A run that was stopped before its last finalist, and went on, whose search's third is best."""
    folder = tmp_path_factory.mktemp("runs")
    trained = []
    train = finalists.train_here

    def trained_once(recipe, context):
        if len(trained) == 2:
            trained.append("stopped")
            raise KeyboardInterrupt
        trained.append(recipe.assignment.digest())
        best = best_trials(resolve_run("first", folder).load(codecs.SEARCH), 3)
        place = [trial.assignment for trial in best].index(recipe.assignment)
        progress = train(recipe, context)
        for entry in progress.history:
            # As if training did most for the last of the search.
            entry.metrics["loss"] -= place
        return progress

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finalists, "train_here", trained_once)
        with pytest.raises(KeyboardInterrupt):
            run(folder, "first", "avg_bits<=3.5")
        run(folder, "first", "avg_bits<=3.5", resume=True)
    assert len(set(trained)) == len(trained) == 4
    return folder


def test_the_best_after_training_is_deployed_and_shown(storage):
    store = resolve_run("first", storage)
    record, search, result = (store.load(codec) for codec in (codecs.FINALISTS, codecs.SEARCH, codecs.RESULT))
    assert [entry.trial for entry in record.in_order()] == [entry.trial for entry in record.entries][::-1]
    assert record.entries[0].trial == search.best.number
    (third,) = (trial for trial in search.trials if trial.number == record.entries[2].trial)
    assert result.assignment == third.assignment.as_json != search.best.assignment.as_json
    assert result.costs == third.costs
    assert json.loads((storage / "first" / "model" / "config.json").read_text())
    assert [row["place"] for row in result.finalists] == [3, 2, 1]
    assert record.describe() in result.notes
    assert f"trial {third.number} is the best" in record.describe()
    page = (storage / "first" / "report.html").read_text()
    assert "place in the search" in page
    saved = raysearch.load_run("first", storage)
    assert saved.load_sensitivity()[2] == third.assignment
    # The saved state fits no other assignment.
    saved.export(["packed"])


def taken_over(storage, folder, *changes, train=None):
    """Names of the stages that a run takes over from the first."""
    task = toy_task.make_task()
    task.train = train or task.train
    config = raysearch.load_config(assignments=[*SETTINGS, *changes, "cluster.device=cpu"])
    record = config.fixed() | {"budget": ["avg_bits<=3.5"]}
    inputs = check_inputs(task, config, record["budget"])
    store = RunStore(folder, "new")
    EarlierRun(resolve_run("first", storage)).take_over(store, record, inputs)
    return store.load(codecs.REUSED).stages


def test_finalists_are_taken_over_where_all_that_they_depend_on_is_the_same(storage, tmp_path):
    measured = ("calibration", "rounding", "sensitivity", "search")
    longer = taken_over(storage, tmp_path / "longer", "training.epochs=3", "training.num_workers=2")
    assert longer == (*measured, "finalists", "refinement")
    other = toy_task.data(96, 5)
    assert taken_over(storage, tmp_path / "other", train=other) == measured
    assert taken_over(storage, tmp_path / "rate", "training.learning_rate=0.1") == measured
    assert taken_over(storage, tmp_path / "off", "search.finalists_trained=0") == measured


def test_a_trial_that_was_named_has_no_rivals(storage):
    stages = []

    def listener(status):
        stages.append(status.stage)
        if status.stage == "refinement":
            raise KeyboardInterrupt

    number = resolve_run("first", storage).load(codecs.SEARCH).best.number
    with pytest.raises(KeyboardInterrupt):
        run(storage, "taken", start_from="first", trial=number, listener=listener)
    assert "finalists" not in stages


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("training.epochs=0", "finalists_trained is 3, but training.epochs is 0, so nothing is trained"),
        ("search.finalists_trained=1", "one finalist has nothing to be compared with"),
        ("search.minimize=size", "leave one of them out"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, change, text):
    changes = [change]
    if "minimize" in change:
        changes.append("search.max_drop=loss=1%")
    with pytest.raises(ConfigError, match=text):
        run(tmp_path, "none", "avg_bits<=3", changes=changes)
    task = toy_task.make_task()
    task.train = None
    with pytest.raises(ConfigError, match="but the Task has no training data"):
        run(tmp_path, "none", "avg_bits<=3", task=task)
