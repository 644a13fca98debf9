"""A model that workers make themselves."""

from functools import partial

import pytest
import torch
from torch import nn

from raysearch.cluster.shipping import dumps, loads
from raysearch.errors import TaskError
from raysearch.evaluation import Divergence, Replica, default_forward
from raysearch.evaluation.model.model_hash import hash_model
from raysearch.evaluation.model.model_source import ModelSource
from raysearch.evaluation.model.private_model import private_model
from raysearch.task import Task, private_task

INPUTS = (torch.ones(1, 64),)


def load(path):
    """A model whose weights lie in a file."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
    model.load_state_dict(torch.load(path))
    return model


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Linear(64, 64), nn.ReLU()).state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def test_a_replica_travels_without_weights_that_its_worker_reads(path):
    task = private_task(Task(partial(load, path), INPUTS, calibration=[INPUTS[0]]))
    source = ModelSource(task.factory, INPUTS, hash_model(task.model))
    replica = Replica(task.model, default_forward, {}, Divergence(), source=source)
    shipment = dumps(replica)
    assert sum(array.nbytes for array in shipment.arrays) == INPUTS[0].nbytes
    arrived = loads(shipment).model
    assert not arrived.training
    for name, value in task.model.state_dict().items():
        assert torch.equal(arrived.state_dict()[name], value)


def test_weights_that_changed_meanwhile_are_refused(path):
    source = ModelSource(partial(load, path), INPUTS, hash_model(private_model(load(path), INPUTS)))
    assert source.make() is not source.make()
    torch.save(nn.Sequential(nn.Linear(64, 64)).state_dict(), path)
    with pytest.raises(TaskError, match="gave another model than when the run began"):
        source.make()
    path.unlink()
    with pytest.raises(TaskError, match=r"failed: FileNotFoundError.*on every node"):
        source.make()


def test_wrappers_inside_are_taken_off():
    def wrapped():
        torch.manual_seed(0)
        return nn.Sequential(nn.DataParallel(nn.Linear(64, 2)))

    source = ModelSource(wrapped, INPUTS, hash_model(private_model(wrapped(), INPUTS)))
    assert list(source.make().state_dict()) == ["0.weight", "0.bias"]
