"""Traces against dense matrices, and their stated errors against the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from raysearch.cluster.pool import LocalPool
from raysearch.errors import DataError, TaskError
from raysearch.records import Trace
from raysearch.seeding import derive_seed
from raysearch.sensitivity.measure import measure_sensitivity
from raysearch.sensitivity.traces import measure_traces, probe_shard, reduce_trace, unreached
from tests.sensitivity.dense import gauss_newton, hessian
from tests.sensitivity.nets import make_ranges, make_replica, make_setup

MODELS = ["linear", "relu", "conv", "depthwise", "tied", "embedding", "attention"]
T_975 = {7: 2.365, 15: 2.131}


def probe_of(weight, seed, name, shard, k):
    generator = torch.Generator().manual_seed(derive_seed(seed, "traces", name, shard, k))
    return (torch.randint(0, 2, weight.shape, generator=generator) * 2.0 - 1).reshape(-1).double()


@pytest.mark.parametrize("loss", ["divergence", "loss"])
@pytest.mark.parametrize("name", MODELS)
def test_every_probe_is_the_dense_quadratic_form(name, loss):
    replica = make_replica(name)
    setup = make_setup(name, replica)
    got = probe_shard(replica, setup, loss, 5, 1, 2, 6)
    assert float(got["num_samples"]) == 6
    for weight_id in setup.of_kind("weight"):
        weight = replica.model.get_parameter(weight_id)
        dense = hessian(replica, weight_id, 1, loss).double()
        probes = [probe_of(weight, 5, weight_id, 1, k) for k in range(2, 6)]
        expected = [float(v @ dense @ v) / weight.numel() for v in probes]
        size = float(dense.abs().sum()) / weight.numel()
        assert got[weight_id] == pytest.approx(expected, rel=1e-4, abs=1e-6 * size), weight_id


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


@pytest.mark.parametrize("name", MODELS)
def test_the_estimate_is_within_its_error_of_the_dense_trace(name):
    replica = make_replica(name)
    setup = make_setup(name, replica)
    traces = measure_traces(
        setup, LocalPool(replica), 3, num_probes=64, probe_chunk=24, loss="divergence", seed=1
    )
    sizes = [6, 6, 3]
    for weight_id, trace in traces.items():
        dense = [float(torch.trace(gauss_newton(replica, weight_id, s))) for s in range(3)]
        truth = float(np.average(dense, weights=sizes)) / replica.model.get_parameter(weight_id).numel()
        assert abs(trace.value - truth) <= 4 * trace.probe_stderr + 1e-6 * truth
        assert trace.probe_stderr <= trace.stderr
        assert (trace.point, trace.num_probes, trace.num_samples) == (weight_id, 64, 15)


def test_chunks_of_probes_change_nothing():
    replica = make_replica("relu")
    setup = make_setup("relu", replica)

    def measure(chunk):
        options = {"num_probes": 6, "loss": "loss", "seed": 3, "probe_chunk": chunk}
        return measure_traces(setup, LocalPool(replica), 3, **options)

    assert measure(1) == measure(4) == measure(6)


def simulate(rng, sizes, num_probes, data_sd, probe_sd):
    """Shard samples around the truth 1: Var of a shard's mean is data_sd²/size and probe noise on top."""
    samples = []
    for size in sizes:
        mean = 1 + rng.normal() * data_sd / math.sqrt(size)
        samples.append(mean + rng.normal(size=num_probes) * probe_sd / math.sqrt(size))
    return reduce_trace("w", samples, np.array(sizes, dtype=float))


@pytest.mark.parametrize(("data_sd", "probe_sd"), [(2.0, 1.0), (0.0, 1.0), (2.0, 0.0)])
def test_stated_errors_cover_the_truth_at_their_rate(data_sd, probe_sd):
    rng = np.random.default_rng(0)
    found = [simulate(rng, [32] * 8, 16, data_sd, probe_sd) for _ in range(800)]
    rate = np.mean([abs(trace.value - 1) <= T_975[7] * trace.stderr for trace in found])
    # Where the probe error is the larger estimate of the two it is taken, so the rate may be higher.
    assert 0.93 <= rate <= (0.97 if data_sd else 0.995)


@pytest.mark.parametrize("sizes", [[32, 32], [32, 1], [1, 2, 4, 8, 16]])
def test_the_total_error_is_unbiased_for_uneven_shards(sizes):
    rng = np.random.default_rng(1)
    found = [simulate(rng, sizes, 2, 1.0, 0.0) for _ in range(3000)]
    assert np.mean([trace.stderr**2 for trace in found]) == pytest.approx(1 / sum(sizes), rel=0.12)
    assert np.var([trace.value for trace in found]) == pytest.approx(1 / sum(sizes), rel=0.12)


def test_the_probe_error_covers_the_dense_trace_of_a_real_model():
    replica = make_replica("relu", sizes=(8,))
    setup = make_setup("relu", replica)
    truth = {
        name: float(torch.trace(gauss_newton(replica, name, 0))) / replica.model.get_parameter(name).numel()
        for name in setup.of_kind("weight")
    }
    hits = []
    for seed in range(120):
        options = {"num_probes": 16, "probe_chunk": 16, "loss": "divergence", "seed": seed}
        traces = measure_traces(setup, LocalPool(replica), 1, **options)
        hits += [abs(trace.value - truth[name]) <= T_975[15] * trace.stderr for name, trace in traces.items()]
    # 240 draws at 95 %: 90 % is 3.5 standard deviations below.
    assert np.mean(hits) >= 0.90


def test_the_total_error_covers_the_trace_of_the_whole_population():
    population = make_replica("linear", sizes=(1280,), scale=1.0)
    setup = make_setup("linear", population)
    inputs, labels = population.shards["calibration"][0]
    truth = float(torch.trace(gauss_newton(population, "0.weight", 0))) / 24
    hits = []
    for start in range(0, 1280, 32):
        cut = [slice(start + 4 * s, start + 4 * s + 4) for s in range(8)]
        population.shards = {"calibration": [(inputs[c], labels[c]) for c in cut]}
        population.cache.clear()
        options = {"num_probes": 4, "probe_chunk": 4, "loss": "divergence", "seed": start}
        trace = measure_traces(setup, LocalPool(population), 8, **options)["0.weight"]
        hits.append(abs(trace.value - truth) <= T_975[7] * trace.stderr)
    assert np.mean(hits) >= 0.86


def test_one_shard_and_one_probe():
    assert reduce_trace("w", [np.array([1.0, 3.0])], np.array([5.0])) == Trace("w", 2.0, 1.0, 1.0, 2, 5)
    assert reduce_trace("w", [np.array([3.0])], np.array([5.0])) == Trace("w", 3.0, 0.0, 0.0, 1, 5)


@pytest.mark.parametrize("loss", ["divergence", "loss"])
def test_an_unreached_weight_has_trace_zero_and_is_named(loss):
    replica = make_replica("unreached")
    setup = make_setup("unreached", replica)
    ranges = make_ranges(setup, replica)
    with pytest.warns(UserWarning, match="'idle.weight'.*trace is 0") as caught:
        table = measure_sensitivity(
            setup, ranges, lambda part: LocalPool(replica), 3, num_probes=2, trace_loss=loss
        )
    assert len(caught) == 1
    assert unreached(table.traces) == ["idle.weight"]
    assert table.traces["idle.weight"].value == 0
    assert table.traces["used.weight"].value > 0
    assert all(table.effects["idle.weight", bits].response == 0 for bits in (2, 3, 4, 8))


def test_a_loss_that_reaches_no_weight_gives_zeros():
    replica = make_replica("linear")
    replica.loss = lambda outputs, batch: torch.zeros(())
    setup = make_setup("linear", replica)
    options = {"num_probes": 2, "probe_chunk": 2, "loss": "loss", "seed": 0}
    assert unreached(measure_traces(setup, LocalPool(replica), 3, **options)) == ["0.weight"]


def test_a_task_without_a_scalar_loss_is_refused():
    replica = make_replica("linear")
    setup = make_setup("linear", replica)
    replica.loss = lambda outputs, batch: outputs.sum(1)
    with pytest.raises(TaskError, match=r"loss has shape \(6,\)"):
        probe_shard(replica, setup, "loss", 0, 0, 0, 1)
    replica.loss = None
    with pytest.raises(TaskError, match="the Task has no loss"):
        probe_shard(replica, setup, "loss", 0, 0, 0, 1)


def test_a_trace_that_is_not_finite_is_named():
    replica = make_replica("relu")
    setup = make_setup("relu", replica)
    replica.shards["calibration"][2][0][1, 0] = float("nan")
    with pytest.raises(DataError, match=r"trace of '0\.weight' is not finite on calibration shard 2"):
        measure_traces(setup, LocalPool(replica), 3, num_probes=2, probe_chunk=2, loss="divergence", seed=0)
