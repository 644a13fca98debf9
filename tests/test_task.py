import pickle
import sys

import pytest
import torch
from torch import nn

from raysearch import Task, load_task
from raysearch.cluster.shipping import dumps, loads
from raysearch.errors import TaskError


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"model": "resnet"}, "nn.Module"),
        ({"example_inputs": torch.zeros(1)}, "tuple"),
        ({"calibration": None}, "calibration"),
        ({"loss": 3}, "loss"),
        ({"metrics": {"accuracy": "top1"}}, "accuracy"),
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
