"""Traces of a model with two outputs: those of the dense Hessian of the joint divergence."""

import pytest
import torch
from torch import nn

from raysearch.evaluation import DataSet, Divergence, JointDivergence, Replica, ShardView, default_forward
from raysearch.evaluation.joint_divergence import OutputPart
from raysearch.sensitivity.estimators.make import make_estimator
from raysearch.sensitivity.estimators.protocol import TraceRequest

PARTS = (OutputPart("0", Divergence("kl"), 0.25), OutputPart("1", Divergence("nmse", variance=0.5), 0.75))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x):
        h = self.trunk(x).relu()
        return self.first(h), self.second(h)


def replica(loss=None):
    torch.manual_seed(0)
    batch = (torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]))
    data = {DataSet.CALIBRATION: [batch]}
    return Replica(TwoHeads(), default_forward, data, JointDivergence(PARTS), loss)


def dense_trace(worker, name, loss="divergence"):
    batch = worker.shard(DataSet.CALIBRATION, 0)
    reference = worker.float_outputs(DataSet.CALIBRATION, 0)
    weight = worker.model.get_parameter(name)
    module, key = worker.model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]

    def value(flat):
        outputs = torch.func.functional_call(worker.model, {name: flat.reshape(weight.shape)}, batch[0])
        if loss == "loss":
            return worker.loss(outputs, batch)
        return worker.divergence.per_sample(outputs, reference).mean()

    assert getattr(module, key) is weight
    return float(torch.autograd.functional.hessian(value, weight.detach().reshape(-1)).trace())


def draws(worker, estimator, loss="divergence", count=1):
    names = ("trunk.weight", "first.weight", "second.weight")
    request = TraceRequest(names, loss, 0, range(count))
    answer = make_estimator(estimator).draw(ShardView(worker, DataSet.CALIBRATION, 0), request)
    return {name: float(answer[name].mean()) for name in names}


@pytest.mark.parametrize("estimator", ["ggn-exact", "ggn", "ggn-top", "hutchinson", "xtrace", "xnystrace"])
def test_a_layer_of_any_output_has_its_trace(estimator):
    worker = replica()
    count = 1 if estimator == "ggn-exact" else 64
    traces = draws(worker, estimator, count=count)
    for name, value in traces.items():
        exact = dense_trace(worker, name)
        assert exact > 0
        assert value == pytest.approx(exact, rel=1e-4 if estimator == "ggn-exact" else 0.3), name


def test_the_loss_may_read_any_judged_output():
    def loss(outputs, batch):
        return nn.functional.cross_entropy(outputs[0], batch[1]) + outputs[1].square().mean()

    worker = replica(loss)
    traces = draws(worker, "ggn-exact", "loss")
    for name, value in traces.items():
        assert value == pytest.approx(dense_trace(worker, name, "loss"), rel=1e-4), name
    assert all(value > 0 for value in draws(worker, "fisher", "loss").values())
