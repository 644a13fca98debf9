"""The joint probe against the dense Hessian of all weights together."""

from __future__ import annotations

import math

import pytest
import torch
from torch.func import functional_call

from raysearch.sensitivity.estimators.hutchinson import Hutchinson
from raysearch.sensitivity.estimators.joint import JointHutchinson
from tests.contracts.estimator_contract import EstimatorContract
from tests.sensitivity.estimators.test_hutchinson import probe_of
from tests.support.dense_matrices import hessian
from tests.support.small_replicas import make_replica
from tests.support.trace_draws import draw

NAMES = ("0.weight", "2.weight")


def full_hessian(replica, shard):
    """∂²(mean loss) in both weights, as a nested tuple of flat matrices."""
    batch = replica.shards["calibration"][shard]
    weights = [replica.model.get_parameter(name).detach() for name in NAMES]

    def value(*flat):
        given = {
            name: part.reshape(weight.shape) for name, part, weight in zip(NAMES, flat, weights, strict=True)
        }
        return replica.loss(functional_call(replica.model, given, (batch[0],)), batch)

    return torch.autograd.functional.hessian(value, tuple(weight.reshape(-1) for weight in weights))


class TestJointHutchinson(EstimatorContract):
    name = "joint"


def test_every_draw_is_a_block_of_the_dense_product():
    replica = make_replica("relu")
    got = draw(JointHutchinson(), replica, NAMES, "loss", draws=range(4, 7), seed=3, shard=1)
    dense = full_hessian(replica, 1)
    for k in range(4, 7):
        probes = [probe_of(replica.model.get_parameter(name), 3, name, 1, k) for name in NAMES]
        for row, name in enumerate(NAMES):
            product = sum(dense[row][column].double() @ probes[column] for column in range(2))
            assert got[name][k - 4, 0] == pytest.approx(float(probes[row] @ product), rel=1e-4, abs=1e-6)


def test_the_mean_is_the_trace_and_the_noise_is_larger_than_block_wise():
    replica = make_replica("conv")
    names = tuple(name for name, p in replica.model.named_parameters() if p.ndim > 1)
    joint = draw(JointHutchinson(), replica, names, draws=range(150))
    alone = draw(Hutchinson(), replica, names, draws=range(150))
    for name in names:
        truth = float(torch.trace(hessian(replica, name, 0, "divergence")))
        for found in (joint, alone):
            error = found[name].std(ddof=1) / math.sqrt(150)
            assert abs(found[name].mean() - truth) <= 4 * error
    assert max(joint[n].var() / alone[n].var() for n in names) > 2


def test_weights_that_are_not_reached_have_draws_of_zero():
    replica = make_replica("unreached")
    got = draw(JointHutchinson(), replica, ("used.weight", "idle.weight"), draws=range(3))
    assert (got["idle.weight"] == 0).all()
    assert (got["used.weight"] > 0).all()
    only = draw(JointHutchinson(), replica, ("idle.weight",), draws=range(3))
    assert (only["idle.weight"] == 0).all()
