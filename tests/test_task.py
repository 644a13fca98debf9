import pickle
import sys

import pytest
import torch
from torch import nn

import raysearch
from raysearch import Task, load_task
from raysearch.cluster.shipping import dumps, loads
from raysearch.errors import ConfigError, TaskError
from raysearch.task import private_task


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"model": "resnet"}, "nn.Module, or a function that gives one"),
        ({"model": lambda: "resnet"}, r"function Task\(model=...\) gave a str"),
        ({"model": lambda: nn.Linear(2, "2")}, r"function Task\(model=...\) failed: TypeError"),
        ({"example_inputs": torch.zeros(1)}, "tuple"),
        ({"calibration": None}, "calibration"),
        ({"loss": 3}, "loss"),
        ({"metrics": {"accuracy": "top1"}}, "accuracy"),
        ({"metrics": len}, r"Task\(metrics=...\) is a builtin_function_or_method; it must be a mapping"),
        ({"metrics": [("accuracy", len)]}, "is a list"),
        ({"metrics": torch.zeros(2)}, "is a Tensor"),
        ({"metrics": {1: len}}, "the name 1, a int"),
        ({"metrics": {"": len}}, "not empty"),
        ({"metrics": {"divergence": len}}, "'divergence', which is reserved"),
        ({"metrics": {"agreement": len}}, "reserved"),
        ({"metrics": {"Loss": len}}, "reserved"),
        ({"settings": [1]}, r"Task\(settings=...\) is a list"),
    ],
)
def test_fields_of_a_wrong_type_are_named(fields, part):
    good = {"model": nn.Linear(2, 2), "example_inputs": (torch.zeros(1, 2),), "calibration": []}
    with pytest.raises(TaskError, match=part):
        Task(**{**good, **fields})


def test_a_task_file_and_its_neighbours_reach_a_process_that_lacks_them(tmp_path):
    (tmp_path / "neighbour.py").write_text("import torch\nclass Net(torch.nn.Linear):\n    size = 3\n")
    (tmp_path / "given.py").write_text(
        "import torch\nfrom neighbour import Net\nfrom raysearch import Task\n"
        "def loss(outputs, batch):\n    return outputs.sum()\n"
        "def make_task():\n    return Task(Net(2, 2), (torch.zeros(1, 2),), [torch.zeros(4, 2)], loss=loss)\n"
    )
    task = load_task(f"{tmp_path / 'given.py'}:make_task")
    shipment = dumps((task.model, task.loss))
    for name in [
        name for name in sys.modules if name == "neighbour" or name.startswith("raysearch_task_given")
    ]:
        del sys.modules[name]
    model, loss = loads(shipment)
    assert type(model).size == 3
    assert loss(torch.ones(2), None) == 2


def test_a_package_factory_and_a_task_itself():
    task = load_task("tests.support.toy_task:make_task")
    assert load_task(task) is task
    assert pickle.loads(pickle.dumps(task.example_inputs))[0].shape == (2, 1, 6, 6)


def test_a_failing_factory_says_what_failed(tmp_path):
    (tmp_path / "bad.py").write_text("def make_task():\n    raise OSError('no such weights')\n")
    with pytest.raises(TaskError, match="OSError: no such weights"):
        load_task(f"{tmp_path / 'bad.py'}:make_task")


def test_a_script_that_ends_the_process_is_named(tmp_path):
    (tmp_path / "script.py").write_text("import argparse\nargparse.ArgumentParser().parse_args(['--no'])\n")
    with pytest.raises(TaskError, match=r"script.py' cannot be imported: it ended .*SystemExit: 2"):
        load_task(f"{tmp_path / 'script.py'}:make_task")
    (tmp_path / "factory.py").write_text("import sys\ndef make_task():\n    sys.exit('no GPU')\n")
    with pytest.raises(TaskError, match=r"SystemExit: no GPU.*__main__"):
        load_task(f"{tmp_path / 'factory.py'}:make_task")
    (tmp_path / "stopped.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_task(f"{tmp_path / 'stopped.py'}:make_task")


def test_packages_beside_a_task_file_travel_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    for package in ("plain_nets", "marked_nets"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "small.py").write_text(
            "import torch\nclass Net(torch.nn.Linear):\n    size = 3\n"
        )
    (tmp_path / "marked_nets" / "__init__.py").write_text("")
    (tmp_path / "beside.py").write_text(
        "import torch\nfrom plain_nets.small import Net\nfrom raysearch import Task\n"
        "def make_task():\n    from marked_nets.small import Net as Late\n"
        "    model = torch.nn.Sequential(Net(2, 2), Late(2, 2))\n"
        "    return Task(model, (torch.zeros(1, 2),), [torch.zeros(4, 2)])\n"
    )
    shipment = dumps(load_task(f"{tmp_path / 'beside.py'}:make_task").model)
    ours = ("plain_nets", "marked_nets", "raysearch_task_beside")
    for name in [name for name in sys.modules if name.startswith(ours)]:
        monkeypatch.delitem(sys.modules, name)
    sys.path.remove(str(tmp_path))
    assert [layer.size for layer in loads(shipment)] == [3, 3]


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"placement": {"bits": 4}}, "'placement.bits' is unknown"),
        ({"cluster": {"threads": 2}}, "which are a run's own"),
        ({"seed": 1}, "which are a run's own"),
    ],
)
def test_settings_of_a_task_that_nothing_takes_are_refused(settings, part):
    with pytest.raises(ConfigError, match=part):
        Task(nn.Linear(2, 2), (torch.zeros(1, 2),), [], settings=settings)


def test_settings_of_a_task_count_where_the_run_sets_nothing():
    settings = {"placement": {"activation_bit_widths": (), "weight_bit_widths": (4,)}}
    task = Task(nn.Linear(2, 2), (torch.zeros(1, 2),), [], settings=settings)

    def options(config):
        setup, _ = raysearch.inspect(task, config)
        return {name: [scheme.num_bits for scheme in group.schemes] for name, group in setup.groups.items()}

    assert options(None) == {"weight": [4]}
    # Set by the run, though to what is the default.
    assert options({"placement": {"activation_bit_widths": (8,)}}) == {"weight": [4], "input": [8]}


def test_a_factory_is_given_what_follows_its_name(tmp_path):
    (tmp_path / "sized.py").write_text(
        "import torch\nfrom raysearch import Task\n"
        "def make_task(width='2', name=''):\n"
        "    model = torch.nn.Linear(int(width), 2)\n    model.title = name\n"
        "    return Task(model, (torch.zeros(1, int(width)),), [])\n"
    )
    spec = f"{tmp_path / 'sized.py'}:make_task"
    assert load_task(spec).model.in_features == 2
    task = load_task(f"{spec}?width=3&name=a%20b%3Ac")
    assert (task.model.in_features, task.model.title) == (3, "a b:c")
    with pytest.raises(TaskError, match=r"make_task\?height=1' failed: TypeError: .*'height'"):
        load_task(f"{spec}?height=1")


def test_a_model_in_a_wrapper_is_taken_out_of_it_and_told():
    task = Task(nn.DataParallel(nn.Linear(2, 2)), (torch.zeros(1, 2),), [torch.zeros(4, 2)])
    with pytest.warns(UserWarning, match="is a DataParallel; raysearch works on the Linear inside it"):
        own = private_task(task)
    assert type(own.model) is nn.Linear
    assert own.model is not task.model.module
    with pytest.warns(DeprecationWarning, match="trace"):
        traced = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(TaskError, match=r"torch\.jit"):
        Task(traced, (torch.zeros(1, 2),), [torch.zeros(4, 2)])
