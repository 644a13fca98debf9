"""Every wrong use: one paragraph, exit code 2, no traceback, nothing lost."""

import itertools
import json
import sys

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import raysearch
from raysearch import Task
from raysearch.cli import app
from raysearch.errors import BadInputError, TaskError
from tests.chaos import odd_tasks
from tests.support import toy_task
from tests.support.command_line import QUICK, TOY, run_process

TASK = f"{TOY}:make_task"


def refuse(*arguments):
    """Run a command that must be refused; returns its one paragraph, before which a run tells its checks."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), "no traceback"
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    *steps, paragraph = result.stderr.strip().splitlines()
    assert [step.split()[1:] for step in steps] == [["task"], ["checks"]][: len(steps)]
    return paragraph


def refuse_run(task, storage, *, budget="avg_bits<=4", **config):
    """`raysearch.run` on a task that must be refused before compute; returns the message."""
    with pytest.raises(BadInputError) as caught:
        raysearch.run(task, budget, storage, config=config, run_id="bad", workers=0)
    assert not (storage / "bad").exists(), "refused before anything was written"
    return str(caught.value)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else self.fc(-x)


def test_unknown_layer_in_a_pin_names_the_nearest():
    text = refuse("inspect", TASK, "--set", "placement.pins.hed.weight=8")
    assert "'hed.weight'" in text
    assert "head.weight" in text


def test_a_logger_that_training_could_not_make(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    loggers = ("--set", 'training.loggers=["tensorboard"]')
    text = refuse("run", TASK, "--budget", "avg_bits<=4", "--storage", tmp_path, "--workers", "0", *loggers)
    assert "pip install tensorboardX" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("budget", ["avg_bits<=1.5", "size<=5%", "bops<=1%", "act_bits<=7"])
def test_budget_below_the_range_states_the_range(budget, tmp_path):
    text = refuse("run", TASK, "--budget", budget, "--storage", tmp_path, "--workers", "0")
    assert "cannot be met" in text
    assert "Achievable:" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("budget", "part"),
    [
        ("bits<=4", "'bits'"),
        ("avg_bits=4", "KIND<=NUMBER"),
        ("size<=4 elephants", "elephants"),
        ("avg_bits<=4%", "%"),
    ],
)
def test_budget_that_cannot_be_read(budget, part, tmp_path):
    text = refuse("run", TASK, "--budget", budget, "--storage", tmp_path, "--workers", "0")
    assert budget in text
    assert part in text


def test_task_that_cannot_be_found(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_package\n")
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def make_task():\n    return 3\n")
    assert "make_tsk" in refuse("inspect", f"{TOY}:make_tsk")
    assert "make_task" in refuse("inspect", f"{TOY}:make_tsk")
    assert "does not exist" in refuse("inspect", "no/such.py:make_task")
    assert "no_such_package" in refuse("inspect", f"{broken}:make_task")
    assert "returned a int" in refuse("inspect", f"{wrong}:make_task")
    assert "path/to/file.py:factory" in refuse("inspect", "task.py")
    assert "no_such_module" in refuse("inspect", "no_such_module:make_task")


def test_empty_and_broken_data(tmp_path):
    task = toy_task.make_task()
    task.calibration = []
    assert "calibration data is empty" in refuse_run(task, tmp_path)
    images, labels = toy_task.data(32, 0).tensors
    images[21, 0, 3, 3] = float("nan")
    task.calibration = [(images[:16], labels[:16]), (images[16:], labels[16:])]
    text = refuse_run(task, tmp_path)
    assert "batch 1" in text
    assert "sample 5" in text
    task = toy_task.make_task()
    task.train = (batch for batch in [1])
    assert "only once" in refuse_run(task, tmp_path)


def no_length():
    raise TypeError("nobody knows")


def test_what_tasks_are_made_of_is_tried(tmp_path):
    """Each of these was a traceback, or did not end."""

    def refused(**odd):
        return refuse_run(Task(**{**odd_tasks.fields(), **odd}), tmp_path, search={"num_trials": 4})

    x, y = odd_tasks.tensors()
    assert "positions failed" in refused(positions=lambda batch: batch["mask"])
    assert "itertools.repeat, which has no end" in refused(validation=itertools.repeat((x, y)))
    assert "reading the training data failed" in refused(train=odd_tasks.Scripted(len, no_length))
    assert "inputs=...): batch[0] is on the meta" in refused(example_inputs=(x.to("meta"),))
    assert "SystemExit: 3" in refused(forward=odd_tasks.failing(SystemExit(3)))
    with pytest.raises(TaskError, match="SystemExit: 3"):
        Task(odd_tasks.failing(SystemExit(3)), (x,), [x])
    assert "shape (12, 0), not a floating-point" in refused(forward=lambda model, batch: x[:, :0])


def test_nan_in_the_model_names_the_layer(tmp_path):
    task = toy_task.make_task()
    task.model.mix.weight.data[0, 0, 0, 0] = float("inf")
    assert "'mix.weight'" in refuse_run(task, tmp_path)
    task = toy_task.make_task()
    task.model.norm.running_var.fill_(-1)
    assert "'norm'" in refuse_run(task, tmp_path)


def test_a_latency_budget_needs_a_profile_with_every_layer(tmp_path):
    task = toy_task.make_task()
    assert "--latency-profile" in refuse_run(task, tmp_path, budget="latency<=1ms")
    file = tmp_path / "latency.json"
    file.write_text('{"layers": {"other.weight": {"float": 1e-3, "8": 1e-3}}}')
    text = refuse_run(task, tmp_path, budget="latency<=1ms", search={"latency_profile": str(file)})
    assert "has no time of" in text
    text = refuse_run(task, tmp_path, search={"latency_profile": str(tmp_path / "none.json")})
    assert "cannot be read" in text


def test_a_model_that_cannot_be_captured(tmp_path):
    task = raysearch.Task(Branching(), (torch.zeros(1, 4),), [torch.randn(8, 4)])
    text = refuse_run(task, tmp_path)
    assert "Branching cannot be captured" in text
    assert "depends on the values of a tensor" in text
    assert "What to do" in text
    task = raysearch.Task(nn.Linear(4, 2), (torch.zeros(1, 3),), [torch.randn(8, 4)])
    text = refuse_run(task, tmp_path)
    assert "itself does not run on its example inputs" in text
    assert "(1, 3) torch.float32" in text


@pytest.mark.slow
def test_outputs_that_are_no_logits(tmp_path):
    task = raysearch.Task(nn.Linear(4, 1), (torch.zeros(2, 4),), [torch.randn(8, 4)])
    assert "set it to 'nmse'" in refuse_run(task, tmp_path, objective={"divergence": "kl"})
    result = raysearch.run(
        task,
        "avg_bits<=4",
        tmp_path,
        config=raysearch.load_config(assignments=[*QUICK, 'export.targets=["packed"]']),
        workers=0,
    )
    assert any("compared by 'nmse'" in note for note in result.notes)


def test_maps_whose_classes_may_be_anywhere(tmp_path):
    task = raysearch.Task(nn.Conv2d(3, 2, 1), (torch.zeros(2, 3, 5, 6),), [torch.randn(8, 3, 5, 6)])
    text = refuse_run(task, tmp_path)
    assert "(8, 2, 5, 6)" in text
    assert "objective.class_dim: 1" in text


def test_settings_that_are_unknown_or_wrong(tmp_path):
    assert "search.num_trials" in refuse("inspect", TASK, "--set", "search.num_trial=3")
    assert "search.num_trials" in refuse("inspect", TASK, "--set", "search.num_trials=none")
    assert "section.key=value" in refuse("inspect", TASK, "--set", "search")
    assert "cannot be read" in refuse("inspect", TASK, "-c", tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("search = [")
    assert "is not TOML" in refuse("inspect", TASK, "-c", tmp_path / "bad.toml")
    assert "pdf" in refuse_run(toy_task.make_task(), tmp_path / "x", export={"targets": ["pdf"]})
    task = toy_task.make_task()
    task.loss = None
    assert "training.objective" in refuse_run(task, tmp_path / "x", training={"objective": "loss"})


def test_folders_that_are_not_the_run(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    quick = [part for text in QUICK for part in ("--set", text)]
    run = ["run", TASK, "--budget", "avg_bits<=4", "--storage", tmp_path, "--workers", "0", *quick]
    assert "is no run" in refuse(*run, "--run-id", "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    assert "no run.json" in refuse(*run, "--run-id", "mine", "--resume")
    assert "does not exist" in refuse(*run, "--run-id", "other", "--resume")
    assert "--run-id" in refuse(*run, "--resume")
    assert "nope" in refuse("status", "nope", "--storage", tmp_path)
    assert "nope" in refuse("retrieve", "nope", "--storage", tmp_path, "--to", tmp_path / "to")
    assert "unknown scheme" in refuse("status", "r", "--storage", "nowhere://bucket")


@pytest.mark.process
def test_json_errors_are_one_document(tmp_path):
    process = run_process("status", "nope", "--storage", tmp_path, "--json")
    assert process.returncode == 2
    error = json.loads(process.stdout)["error"]
    assert error["type"] == "StorageError"
    assert error["message"] in process.stderr


def test_missing_options_are_wrong_use():
    assert CliRunner().invoke(app, ["run", TASK]).exit_code == 2
    assert CliRunner().invoke(app, ["fly"]).exit_code == 2
