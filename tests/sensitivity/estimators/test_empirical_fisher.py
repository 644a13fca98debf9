"""The empirical Fisher's trace against gradients of one sample at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raysearch.errors import TaskError
from raysearch.sensitivity.estimators.empirical_fisher import EmpiricalFisher
from tests.contracts.estimator_contract import EstimatorContract
from tests.support.small_replicas import cross_entropy, make_replica, make_setup
from tests.support.trace_draws import draw
from tests.support.weight_use_models import build, weights_of


def by_loop(replica, weight, batch):
    found = []
    for index in range(len(batch[1])):
        one = tuple(part[index : index + 1] for part in batch)
        value = replica.loss(replica.model(one[0]), one)
        (gradient,) = torch.autograd.grad(value, replica.model.get_parameter(weight))
        found.append(float(gradient.double().square().sum()))
    return found


class TestEmpiricalFisher(EstimatorContract):
    name = "fisher"

    def true_trace(self, replica, weight, shard):
        return float(np.mean(by_loop(replica, weight, replica.shards["calibration"][shard])))


@pytest.mark.parametrize("name", ["relu", "conv", "tied", "embedding", "attention"])
def test_it_is_the_squared_gradient_of_each_samples_loss(name):
    replica = make_replica(name, sizes=(5,))
    weights = tuple(make_setup(name, replica).of_kind("weight"))
    found = draw(EmpiricalFisher(chunk_size=2), replica, weights, draws=range(3, 5))
    for weight in weights:
        truth = by_loop(replica, weight, replica.shards["calibration"][0])
        assert found[weight].shape == (2, 5)
        assert found[weight] == pytest.approx(np.tile(truth, (2, 1)), rel=1e-4, abs=1e-6 * max(truth))


def test_it_needs_a_loss_of_the_judged_output():
    replica = build("merged")
    with pytest.raises(TaskError, match="'fisher', but the Task has no loss"):
        draw(EmpiricalFisher(), replica, weights_of(replica), "loss")
    replica.loss = lambda outputs, batch: cross_entropy(outputs["logits"] + outputs["other"], batch)

    def both(model, batch):
        z = model(batch[0])
        return {"logits": z, "other": z + 1}

    replica.forward = both
    with pytest.raises(TaskError, match="alone"):
        draw(EmpiricalFisher(), replica, weights_of(replica), "loss")
    replica.loss = lambda outputs, batch: cross_entropy(outputs["logits"], batch)
    found = draw(EmpiricalFisher(), replica, weights_of(replica), "loss")
    replica.loss, replica.forward = cross_entropy, lambda model, batch: model(batch[0])
    expected = by_loop(replica, "head.weight", replica.shards["calibration"][0])
    assert found["head.weight"][0] == pytest.approx(expected, rel=1e-4)
