"""Where the curves of training go."""

from __future__ import annotations

import sys

import pyarrow.parquet as pq
import pytest

from raysearch.artifacts import Storage
from raysearch.errors import ConfigError
from raysearch.records import TrainingStatus
from raysearch.training.launch import _is_told
from raysearch.training.loggers import check_loggers, logged

OWN = []


class Own:
    """A logger of a user's own."""

    def __init__(self, storage):
        OWN.append(storage.uri)

    def log(self, status):
        OWN.append(status.step)

    def close(self):
        OWN.append("closed")


def step(number, loss):
    return TrainingStatus(0, 2, number, 8, 4, loss, 0.1, {"loss": 9.0})


def test_curves_are_rows_and_steps_taken_again_replace_the_earlier_ones(tmp_path):
    told = []
    storage = Storage(tmp_path)
    with logged(told.append, (), storage) as tell:
        for status in (TrainingStatus(validation={"loss": 3.0}), step(1, 2.0), step(2, 1.5)):
            tell(status)
        tell(TrainingStatus(message="waits"))
    with logged(told.append, (), storage) as tell:
        tell(step(2, 1.25))
        tell(TrainingStatus(step=2, validation={"loss": 1.0}))
    assert len(told) == 6
    rows = pq.read_table(tmp_path / "training.parquet").to_pylist()
    assert [(row["step"], row["loss"], row["validation_loss"]) for row in rows] == [
        (0, None, 3.0),
        (1, 2.0, None),
        (2, 1.25, None),
        (2, None, 1.0),
    ]


def test_a_killed_training_leaves_the_curves_up_to_its_last_validation(tmp_path):
    storage = Storage(tmp_path)
    with logged(lambda status: None, (), storage) as tell:
        for status in (step(1, 2.0), TrainingStatus(step=1, validation={"loss": 3.0}), step(2, 1.5)):
            tell(status)
        rows = pq.read_table(tmp_path / "training.parquet").to_pylist()
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 2.0), (1, None)]


def test_curves_that_cannot_be_written_end_no_training(tmp_path):
    (tmp_path / "run").touch()
    told = []
    with logged(told.append, (), Storage(tmp_path / "run")) as tell:
        for status in (TrainingStatus(validation={"loss": 3.0}), step(1, 2.0)):
            tell(status)
    assert [status.step for status in told] == [0, 1]


def test_a_cut_training_leaves_its_curves_and_loggers_are_closed(tmp_path):
    OWN.clear()
    storage = Storage(tmp_path)
    names = ("tensorboard", f"{__name__}:Own")

    def cut():
        with logged(lambda status: None, names, storage) as tell:
            tell(step(1, 2.0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut()
    assert [storage.uri, 1, "closed"] == OWN
    assert pq.read_table(tmp_path / "training.parquet").num_rows == 1
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"training/loss" in events.read_bytes()


class Failing(Own):
    """Fails where it is told to."""

    place = ""

    def __init__(self, storage):
        super().__init__(storage)
        self.fail_at("start")

    def log(self, status):
        super().log(status)
        self.fail_at("log")

    def close(self):
        super().close()
        self.fail_at("close")

    def fail_at(self, place):
        if self.place == place:
            raise OSError(f"no {place}")


@pytest.mark.parametrize(
    ("place", "called"),
    [("start", ["uri"]), ("log", ["uri", 1]), ("close", ["uri", 1, 2, "closed"])],
)
def test_a_logger_that_fails_ends_no_training(tmp_path, monkeypatch, caplog, place, called):
    OWN.clear()
    monkeypatch.setattr(Failing, "place", place)
    told = []
    with logged(told.append, (f"{__name__}:Failing",), Storage(tmp_path)) as tell:
        tell(step(1, 2.0))
        tell(step(2, 1.5))
    assert len(told) == 2
    assert ["uri", *OWN[1:]] == called
    assert f"Failing' failed, and training goes on without it: OSError('no {place}')" in caplog.text
    assert pq.read_table(tmp_path / "training.parquet").num_rows == 2


def test_a_listener_that_fails_ends_no_training_on_ray(caplog):
    def failing(status):
        raise OSError("gone")

    assert not _is_told(failing, step(1, 2.0))
    assert "nobody is told of it any more: OSError('gone')" in caplog.text
    assert _is_told(lambda status: None, step(1, 2.0))


@pytest.mark.parametrize("name", ["wandb", "raysearch:nothing", "no.such:thing", ":x"])
def test_a_logger_that_is_none_is_refused(name):
    with pytest.raises(
        ConfigError, match=f"training.loggers names '{name}', which is neither one of tensorb"
    ):
        check_loggers(("tensorboard", name), Storage("runs"))


def test_tensorboard_needs_a_local_disk():
    with pytest.raises(ConfigError, match="writes to a local disk"):
        check_loggers(("tensorboard",), Storage("s3://bucket/runs"))


def test_tensorboard_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match="pip install tensorboardX"):
        check_loggers(("tensorboard",), Storage("runs"))
