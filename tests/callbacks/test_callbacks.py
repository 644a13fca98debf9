"""What follows a run, alone: each adapter keeps what it is told, and none can end a run."""

import logging
import sys

import pytest

from raysearch import Callback, MLflowCallback, TensorBoardCallback, WandbCallback
from raysearch.callbacks import Followers, find_callback
from raysearch.errors import ConfigError
from raysearch.records import TrainingStatus
from tests.support.run_records import make_result, make_search, make_setup

SETTINGS = {"task": "task.py:make", "budget": ["avg_bits<=4"], "search": {"num_trials": 12, "racing": True}}


def follow(callback, tmp_path):
    """Tell a callback what a run of a failed, two good trials and one epoch tells."""
    setup = make_setup(2)
    search = make_search(setup)
    (tmp_path / "report.html").write_text("the report")
    result = make_result(setup, search, report=str(tmp_path / "report.html"))
    followers = Followers([callback])
    with followers.told_of_end():
        followers.tell("on_start", "run-1", tmp_path.as_uri(), SETTINGS)
        for trial in search.trials[5:8]:
            followers.tell("on_trial", trial, "divergence")
        followers.tell("on_stage", "search", 2.5)
        followers.tell("on_step", TrainingStatus(0, 1, 1, 2, 4, 0.75, 0.1))
        followers.tell("on_epoch", TrainingStatus(0, 1, 2, 2, validation={"accuracy": 0.5}))
        followers.tell("on_result", result)
    assert followers._callbacks == [callback]
    return search, result


def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    where = f"file://{tmp_path / 'mlruns'}"
    search, result = follow(MLflowCallback("digits", where), tmp_path)
    client = mlflow.MlflowClient(where)
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert (run.info.run_name, run.info.status) == ("run-1", "FINISHED")
    assert run.data.params["search.num_trials"] == "12"
    points = client.get_metric_history(run.info.run_id, "search/divergence")
    assert [(point.step, point.value) for point in points] == [(n, search.trials[n].value) for n in (5, 6)]
    assert run.data.metrics["validation/accuracy"] == 0.5
    assert run.data.metrics["cost/size"] == result.costs["size"]
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["report.html"]
    assert mlflow.active_run() is None


@pytest.mark.process
def test_weights_and_biases(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    callback = WandbCallback("digits", mode="offline", dir=str(tmp_path))
    follow(callback, tmp_path)
    assert wandb.run is None
    assert callback._run.config["search"]["num_trials"] == 12
    # Its service is a process of its own.
    wandb.teardown()
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    kept = path.read_bytes()
    for name in ("search/divergence", "validation/accuracy", "cost/size", "seconds/search"):
        assert name.encode() in kept


def test_tensorboard(tmp_path):
    follow(TensorBoardCallback(str(tmp_path / "board")), tmp_path)
    events = b"".join(path.read_bytes() for path in (tmp_path / "board" / "run-1").rglob("*tfevents*"))
    for name in (
        b"search/divergence",
        b"validation/accuracy",
        b"training/loss",
        b"cost/size",
        b"seconds/search",
    ):
        assert name in events


class Failing(Callback):
    def on_start(self, run_id, uri, settings):
        raise OSError("the disk is full")

    def on_end(self, state, message=""):
        raise AssertionError("it was told after it had failed")


class Ends(Callback):
    def __init__(self):
        self.ends = []

    def on_end(self, state, message=""):
        self.ends.append((state, message))


def test_a_callback_that_fails_is_left_out_and_the_others_are_told_how_a_run_ends(caplog):
    ends = Ends()
    followers = Followers([Failing(), ends])
    with caplog.at_level(logging.WARNING), followers.told_of_end():
        followers.tell("on_start", "run-1", "file:///runs", SETTINGS)
    assert (
        "Failing.on_start failed, and the run goes on without it: OSError('the disk is full')" in caplog.text
    )
    with pytest.raises(ValueError, match="no"), followers.told_of_end():
        raise ValueError("no")
    with pytest.raises(KeyboardInterrupt), followers.told_of_end():
        raise KeyboardInterrupt
    assert ends.ends == [("done", ""), ("failed", "no"), ("cancelled", "stopped from outside")]


def test_callbacks_are_found_by_name_or_refused(monkeypatch):
    assert isinstance(find_callback("tensorboard"), TensorBoardCallback)
    assert isinstance(find_callback(f"{__name__}:Ends"), Ends)
    for name in ("mlfow", "no_such_module:Make", f"{__name__}:Missing"):
        with pytest.raises(
            ConfigError, match=f"'{name}' is no callback: neither one of mlflow, tensorboard, wandb"
        ):
            find_callback(name)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"needs wandb, .* pip install 'raysearch\[wandb\]'"):
        find_callback("wandb")
