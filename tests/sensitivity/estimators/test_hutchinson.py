"""Block-wise Hutchinson against dense Hessians, shard by shard and sample by sample."""

from __future__ import annotations

import pytest
import torch

from raysearch.errors import TaskError
from raysearch.evaluation.batches import take
from raysearch.seeding import derive_seed
from raysearch.sensitivity.estimators.hutchinson import Hutchinson
from tests.contracts.estimator_contract import EstimatorContract
from tests.support.dense_matrices import gauss_newton, hessian
from tests.support.small_replicas import make_replica, make_setup
from tests.support.trace_draws import draw

MODELS = ["linear", "relu", "conv", "depthwise", "tied", "embedding", "attention"]


def probe_of(weight, seed, *key):
    generator = torch.Generator().manual_seed(derive_seed(seed, "traces", *key))
    return (torch.randint(0, 2, weight.shape, generator=generator) * 2.0 - 1).reshape(-1).double()


class TestHutchinson(EstimatorContract):
    name = "hutchinson"


@pytest.mark.parametrize("loss", ["divergence", "loss"])
@pytest.mark.parametrize("name", MODELS)
def test_every_draw_is_the_dense_quadratic_form(name, loss):
    replica = make_replica(name)
    names = tuple(make_setup(name, replica).of_kind("weight"))
    got = draw(Hutchinson(), replica, names, loss, draws=range(2, 6), seed=5, shard=1)
    for weight_id in names:
        weight = replica.model.get_parameter(weight_id)
        dense = hessian(replica, weight_id, 1, loss).double()
        probes = [probe_of(weight, 5, weight_id, 1, k) for k in range(2, 6)]
        expected = [float(v @ dense @ v) for v in probes]
        assert got[weight_id].shape == (4, 1)
        size = float(dense.abs().sum())
        assert got[weight_id][:, 0] == pytest.approx(expected, rel=1e-4, abs=1e-6 * size), weight_id


@pytest.mark.parametrize("loss", ["divergence", "loss"])
@pytest.mark.parametrize("name", ["relu", "conv", "attention"])
def test_a_probe_per_sample_is_the_quadratic_form_of_that_sample(name, loss):
    replica = make_replica(name)
    names = tuple(make_setup(name, replica).of_kind("weight"))
    got = draw(Hutchinson(probe_per_sample=True), replica, names, loss, draws=range(1, 3), seed=5, shard=2)
    singles = make_replica(name)
    batch = singles.shards["calibration"][2]
    singles.shards = {"calibration": [take(batch, i, i + 1) for i in range(3)]}
    for weight_id in names:
        weight = replica.model.get_parameter(weight_id)
        assert got[weight_id].shape == (2, 3)
        for i in range(3):
            dense = hessian(singles, weight_id, i, loss).double()
            for k in (1, 2):
                v = probe_of(weight, 5, weight_id, 2, k, i)
                size = float(dense.abs().sum())
                assert got[weight_id][k - 1, i] == pytest.approx(
                    float(v @ dense @ v), rel=1e-4, abs=1e-6 * size
                )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["kl", "mse"])
def test_the_hessian_of_the_divergence_is_gauss_newton(name, kind):
    replica = make_replica(name, kind=kind)
    for weight_id in make_setup(name, replica).of_kind("weight"):
        dense = hessian(replica, weight_id, 0, "divergence").double()
        expected = gauss_newton(replica, weight_id, 0)
        assert (dense - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", ["relu", "conv", "depthwise"])
def test_piecewise_linear_layers_have_no_curvature_of_their_own(name):
    # So for cross-entropy, whose output Hessian has no label in it, "loss" and "divergence" agree.
    replica = make_replica(name)
    for weight_id in make_setup(name, replica).of_kind("weight"):
        dense = hessian(replica, weight_id, 0, "loss").double()
        expected = gauss_newton(replica, weight_id, 0)
        assert torch.trace(dense) == pytest.approx(float(torch.trace(expected)), rel=1e-5)


def test_a_task_without_a_scalar_loss_is_refused():
    replica = make_replica("linear")
    replica.loss = lambda outputs, batch: outputs.sum(1)
    with pytest.raises(TaskError, match=r"loss has shape \(6,\)"):
        draw(Hutchinson(), replica, ("0.weight",), "loss")
    replica.loss = None
    with pytest.raises(TaskError, match="the Task has no loss"):
        draw(Hutchinson(), replica, ("0.weight",), "loss")
