"""A run that starts from an earlier one computes what is new, and gives what one from nothing gives."""

import pytest
import torch

import raysearch
from raysearch.artifacts import codecs, resolve_run
from raysearch.errors import BudgetError, ConfigError, StorageError
from raysearch.pipeline.reuse import EarlierRun
from tests.support import toy_task
from tests.support.command_line import QUICK, document, run_command

pytestmark = pytest.mark.slow

SETTINGS = [*QUICK, "training.epochs=0", 'export.targets=["packed"]']
FACTORY = "tests/support/toy_task.py:make_task"


def run(storage, run_id, budget=(), task=None, changes=(), **options):
    config = raysearch.load_config(assignments=[*SETTINGS, *changes])
    task = task or FACTORY
    return raysearch.run(task, budget, storage, config=config, run_id=run_id, workers=0, **options)


def seen_stages(stages):
    return lambda status: stages.append(status.stage) if status.stage not in stages else None


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    run(folder, "first", "avg_bits<=3.5")
    return folder


class Told(raysearch.Callback):
    """Keeps what it is told."""

    def __init__(self):
        self.trials, self.stages, self.others = [], [], []

    def on_start(self, run_id, uri, settings):
        self.others.append((run_id, settings["budget"]))

    def on_trial(self, trial, objective):
        self.trials.append((trial.number, objective))

    def on_stage(self, stage, seconds):
        self.stages.append(stage)

    def on_result(self, result):
        self.others.append(result.run_id)

    def on_end(self, state, message=""):
        self.others.append(state)


def test_another_budget_measures_no_sensitivity_and_gives_the_same(storage):
    stages, told = [], Told()
    follow = {"listener": seen_stages(stages), "callbacks": [told]}
    again = run(storage, "second", "avg_bits<=3", start_from="first", **follow)
    trials = resolve_run("second", storage).load(codecs.SEARCH).trials
    assert told.trials == [(trial.number, "divergence") for trial in trials]
    assert told.others == [("second", ["avg_bits<=3"]), "second", "done"]
    assert {"workers", "search", "evaluation", "export"} <= set(told.stages)
    assert not {"calibration", "rounding", "sensitivity"} & set(stages)
    assert {"search", "refinement"} <= set(stages)
    alone = run(storage, "alone", "avg_bits<=3")
    assert again.assignment == alone.assignment
    assert again.quantized_metrics == alone.quantized_metrics
    assert "taken over from the run 'first': calibration, rounding, sensitivity" in again.notes


def test_other_training_searches_nothing(storage):
    stages = []
    changes = ["training.epochs=1"]
    trained = run(storage, "trained", start_from="first", changes=changes, listener=seen_stages(stages))
    assert not {"calibration", "sensitivity", "search", "refinement"} & set(stages)
    assert "training" in stages
    assert trained.budget == ("avg_bits<=3.5",)
    first = resolve_run("first", storage).load(codecs.SEARCH).best
    assert trained.assignment == first.assignment.as_json


def test_a_trial_is_refined_and_exported(storage, capfd):
    search = resolve_run("first", storage).load(codecs.SEARCH)
    other = next(trial for trial in search.trials if trial.is_complete and trial.number != search.best.number)
    result = run(storage, "trial", start_from="first", trial=other.number, progress=True)
    assert "trial  refinement" in capfd.readouterr().err
    assert result.saved().status().state == "done"
    assert result.assignment == other.assignment.as_json
    assert any(note.endswith(f"the assignment is its trial {other.number}") for note in result.notes)
    with pytest.raises(BudgetError, match=rf"trial {other.number} exceeds the budget 'avg_bits<=2.01' by "):
        run(storage, "over", "avg_bits<=2.01", start_from="first", trial=other.number)
    with pytest.raises(StorageError, match=r"has no trial 9999 that was measured on all samples; it has \d"):
        run(storage, "none", start_from="first", trial=9999)


def test_a_run_is_resumed_from_where_it_started_or_not_at_all(storage, monkeypatch):
    search = resolve_run("first", storage).load(codecs.SEARCH)
    other = next(trial for trial in search.trials if trial.is_complete and trial.number != search.best.number)
    options = {"start_from": "first", "trial": other.number}

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EarlierRun, "take_over", stop)
        with pytest.raises(KeyboardInterrupt):
            run(storage, "stopped", **options)
    with pytest.raises(StorageError, match=r"start_from is .* in the run and not set now"):
        run(storage, "stopped", "avg_bits<=3.5", resume=True)
    resumed = run(storage, "stopped", resume=True, **options)
    assert resumed.assignment == other.assignment.as_json


def test_what_fits_nothing_is_refused_before_compute(storage):
    with pytest.raises(ConfigError, match=r"nothing of .*'first' .*: calibration.num_samples is 64"):
        run(storage, "other", start_from="first", changes=["calibration.num_samples=32"])
    model = toy_task.make_task()
    model.model.head.weight.data[0] += 1
    with pytest.raises(ConfigError, match=r"'first' can be taken over: fingerprints\.model is"):
        run(storage, "other", task=model, start_from="first")
    with pytest.raises(ConfigError, match="trial 3 is of an earlier run; name the run"):
        run(storage, "other", "avg_bits<=3", trial=3)
    with pytest.raises(ConfigError, match="a run needs a task, or an earlier run"):
        raysearch.run(None, "avg_bits<=3", storage)
    assert not (storage / "other").exists()


def test_a_changed_setting_of_a_stage_is_computed_anew(storage):
    stages = []
    run(
        storage,
        "sensitive",
        "avg_bits<=3.5",
        start_from="first",
        changes=["sensitivity.draw_chunk=4"],
        listener=seen_stages(stages),
    )
    assert "rounding" not in stages
    assert "sensitivity" in stages


def test_the_command_takes_task_settings_and_budget_of_the_earlier_run(storage):
    again = document(
        run_command(
            "run", "--from", "first", "--storage", storage, "--run-id", "typed", "--workers", 0, "--json"
        )
    )
    assert again["assignment"] == resolve_run("first", storage).load(codecs.RESULT).assignment
    stages = "calibration, rounding, sensitivity, search, refinement"
    assert f"taken over from the run 'first': {stages}" in again["notes"]


def test_the_driver_log_is_shown_without_a_cluster(storage):
    shown = run_command("logs", "first", "--storage", storage)
    messages = [line.partition("  ")[2] for line in shown.stdout.splitlines()]
    assert "running, search" in messages
    assert any(message.startswith("search took ") for message in messages)
    assert messages[-1] == "done"


def test_an_export_adds_a_target_and_removes_none(storage):
    saved = raysearch.load_run("first", storage)
    before = saved.load_model()
    manifest = saved.export(["pt2"])
    assert {check.target for check in manifest.checks} == {"packed", "pt2"}
    example = toy_task.make_task().example_inputs
    assert torch.equal(saved.load_model()(*example), before(*example))
    assert torch.equal(saved.result().load_model()(*example), before(*example))
