"""Measured traces: their values, and their stated errors against the truth."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from raysearch.cluster.pool import LocalPool
from raysearch.config import SensitivityConfig, load_config
from raysearch.errors import ConfigError, DataError
from raysearch.evaluation import DataSet
from raysearch.records import Trace
from raysearch.sensitivity.estimators import make_estimator
from raysearch.sensitivity.estimators.hutchinson import Hutchinson
from raysearch.sensitivity.estimators.xnystrace import XNysTrace
from raysearch.sensitivity.measure import measure_sensitivity
from raysearch.sensitivity.stopping import unreached
from raysearch.sensitivity.traces import measure_traces, reduce_trace
from tests.support.dense_matrices import gauss_newton, output_hessian
from tests.support.small_replicas import inputs_of, make_ranges, make_replica, make_setup
from tests.support.trace_draws import draw

T_975 = {7: 2.365, 15: 2.131, 31: 2.040}
SHARED, SINGLE = Hutchinson(), Hutchinson(probe_per_sample=True)


def dense_trace(replica, name, shard):
    whole = float(torch.trace(gauss_newton(replica, name, shard)))
    return whole / replica.model.get_parameter(name).numel()


@pytest.mark.parametrize("name", ["conv", "attention"])
@pytest.mark.parametrize("estimator", [SHARED, XNysTrace(), SINGLE], ids=["shared", "xnystrace", "single"])
def test_the_estimate_is_within_its_error_of_the_dense_trace(name, estimator):
    replica = make_replica(name)
    setup = make_setup(name, replica)
    settings = SensitivityConfig(relative_error=0.2)
    traces = measure_traces(setup, LocalPool(replica), 3, settings, estimator=estimator)
    assert list(traces) == list(setup.of_kind("weight"))
    for weight_id, trace in traces.items():
        truth = np.average([dense_trace(replica, weight_id, s) for s in range(3)], weights=[6, 6, 3])
        assert abs(trace.value - truth) <= 4 * trace.probe_stderr + 1e-4 * truth
        assert trace.converged
        assert trace.stderr == pytest.approx(math.hypot(trace.probe_stderr, trace.data_stderr))
        assert (trace.point, trace.num_samples) == (weight_id, 15)
        assert trace.estimator == estimator.name


def test_chunks_of_draws_change_nothing():
    replica = make_replica("relu")
    setup = make_setup("relu", replica)

    def measure(chunk):
        settings = SensitivityConfig(max_draws=6, relative_error=1e-9, trace_loss="loss", draw_chunk=chunk)
        return measure_traces(setup, LocalPool(replica), 3, settings, seed=3)

    assert measure(1) == measure(4) == measure(6)


def simulate(rng, sizes, num_draws, data_sd, probe_sd, per_sample=False):
    """Draws around the truth 1: a sample's trace has the error data_sd, a draw of it probe_sd on top."""
    draws = []
    for size in sizes:
        mean = 1 + rng.normal(size=(1, size)) * data_sd
        part = mean + rng.normal(size=(num_draws, size)) * probe_sd
        draws.append(part if per_sample else part.mean(axis=1, keepdims=True))
    return reduce_trace("w", SINGLE if per_sample else SHARED, draws, np.array(sizes, dtype=float))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(("data_sd", "probe_sd"), [(2.0, 1.0), (0.0, 1.0), (2.0, 0.0)])
def test_stated_errors_cover_the_truth_at_their_rate(data_sd, probe_sd, per_sample):
    rng = np.random.default_rng(0)
    found = [simulate(rng, [4] * 8, 16, data_sd, probe_sd, per_sample) for _ in range(800)]
    quantile = T_975[31 if per_sample else 7]
    rate = np.mean([abs(trace.value - 1) <= quantile * trace.stderr for trace in found])
    # Where the probe error is the larger estimate of the two it is taken, so the rate may be higher.
    assert 0.93 <= rate <= (0.975 if data_sd else 0.995)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("sizes", [[32, 32], [32, 1], [1, 2, 4, 8, 16]])
def test_the_errors_over_data_and_over_draws_are_unbiased(sizes, per_sample):
    rng = np.random.default_rng(1)
    only_data = [simulate(rng, sizes, 2, 1.0, 0.0, per_sample) for _ in range(1200)]
    assert np.mean([trace.data_stderr**2 for trace in only_data]) == pytest.approx(1 / sum(sizes), rel=0.15)
    assert np.var([trace.value for trace in only_data]) == pytest.approx(1 / sum(sizes), rel=0.15)
    assert all(trace.probe_stderr == 0 for trace in only_data)
    both = [simulate(rng, sizes, 4, 1.0, 1.0, per_sample) for _ in range(1200)]
    squares = np.mean([(trace.data_stderr**2, trace.probe_stderr**2) for trace in both], axis=0)
    # With two shards the total is known from one degree of freedom, and cutting it at 0 adds to the data.
    assert squares[1] == pytest.approx(0.25 / sum(sizes), rel=0.15)
    assert squares[0] == pytest.approx(1 / sum(sizes), rel=0.3)


class Formula:
    """Hutchinson's draws for softmax regression, (Vx)ᵀΛ(Vx) with V of ±1; fast enough for 200 runs."""

    name, deterministic = "formula", False

    def __init__(self, per_sample):
        self.per_sample = per_sample

    def draw(self, view, request):
        inputs = view.batch()[0].double().numpy()
        curvature = output_hessian(view.replica, view.float_outputs()).numpy()
        rows = []
        for k in request.draws:
            shape = (len(inputs) if self.per_sample else 1, 4, 6)
            probe = np.random.default_rng([request.seed, view.index, k]).choice([-1.0, 1.0], shape)
            image = (probe @ inputs[:, :, None])[:, :, 0]
            rows.append(np.einsum("ni,nij,nj->n", image, curvature, image))
        found = np.array(rows)
        return {request.weights[0]: found if self.per_sample else found.mean(axis=1, keepdims=True)}


def softmax_regression(population, chosen):
    """A replica with shards of 16 of the chosen samples, and its setup."""
    replica = make_replica("linear", sizes=(1,), scale=1.0)
    replica.shards = {
        "calibration": [(part, torch.zeros(len(part))) for part in population[chosen].split(16)]
    }
    return replica


def true_trace(replica, inputs):
    curvature = output_hessian(replica, replica.model(inputs).detach())
    return float((curvature.diagonal(dim1=1, dim2=2).sum(1) * inputs.double().square().sum(1)).mean()) / 24


def test_the_formula_is_what_hutchinson_estimates():
    population = inputs_of("linear", 96, 1)
    replica = softmax_regression(population, slice(0, 16))
    assert true_trace(replica, population[:16]) == pytest.approx(
        dense_trace(replica, "0.weight", 0), rel=1e-5
    )
    drawn = [draw(m, replica, ("0.weight",), draws=range(300))["0.weight"] for m in (SHARED, Formula(False))]
    for values in drawn:
        error = values.std(ddof=1) / math.sqrt(300)
        assert values.mean() / 24 == pytest.approx(true_trace(replica, population[:16]), abs=4 * error / 24)
    assert drawn[0].std() == pytest.approx(drawn[1].std(), rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("per_sample", [False, True])
def test_intervals_of_whole_measurements_cover_the_truth_at_their_rate(per_sample):
    population = inputs_of("linear", 20_000, 1)
    setup = make_setup("linear", make_replica("linear"))
    truth = true_trace(softmax_regression(population, slice(0, 1)), population)
    inside, outside = [], []
    for seed in range(200):
        chosen = torch.from_numpy(np.random.default_rng(seed).choice(20_000, 256, replace=False))
        replica = softmax_regression(population, chosen)
        trace = measure_traces(
            setup, LocalPool(replica), 16, SensitivityConfig(), estimator=Formula(per_sample), seed=seed
        )["0.weight"]
        sample = true_trace(replica, population[chosen])
        # Two standard errors; the total one is known from 16 shards where samples are not seen singly.
        inside.append(abs(trace.value - sample) <= 2 * trace.probe_stderr)
        outside.append(abs(trace.value - truth) <= (2 if per_sample else T_975[15]) * trace.stderr)
        assert trace.probe_stderr <= 0.05 * trace.value
    # 200 runs at 95 %: 92 % is two standard deviations below.
    assert np.mean(inside) >= 0.92
    assert np.mean(outside) >= 0.92


def test_one_shard_and_a_deterministic_estimator():
    draws = [np.array([[1.0], [3.0]])]
    trace = reduce_trace("w", SHARED, draws, np.array([5.0]))
    assert (trace.value, trace.stderr, trace.probe_stderr) == (2.0, 1.0, 1.0)
    assert math.isnan(trace.data_stderr)

    class Known:
        name, deterministic, per_sample = "known", True, True

        def draw(self, view, request):
            return {name: np.array([[6.0, 12.0, 18.0]]) for name in request.weights}

    replica = make_replica("linear", sizes=(3, 3))
    setup = make_setup("linear", replica)
    traces = measure_traces(setup, LocalPool(replica), 2, SensitivityConfig(), estimator=Known())
    found = traces["0.weight"]
    per_weight = np.array([6, 12, 18] * 2) / 24
    error = float(per_weight.std(ddof=1) / math.sqrt(6))
    assert found == Trace("0.weight", 0.5, error, 0.0, error, 1, 6, "known", True)


def test_a_negative_trace_keeps_its_sign():
    replica = make_replica("embedding")
    # A loss that is concave in the logits.
    replica.loss = lambda outputs, batch: -outputs.square().mean()
    trace = measure_traces(
        make_setup("embedding", replica),
        LocalPool(replica),
        3,
        SensitivityConfig(trace_loss="loss", estimator="hutchinson"),
    )["head.weight"]
    assert trace.value < 0
    assert trace.converged


@pytest.mark.parametrize("loss", ["divergence", "loss"])
def test_an_unreached_weight_has_trace_zero_and_is_named(loss):
    replica = make_replica("unreached")
    setup = make_setup("unreached", replica)
    ranges = make_ranges(setup, replica)
    with pytest.warns(UserWarning, match="'idle.weight'.*trace is 0") as caught:
        table = measure_sensitivity(
            setup,
            ranges,
            lambda part: LocalPool(replica),
            {DataSet.CALIBRATION: 3},
            SensitivityConfig(relative_error=0.5, trace_loss=loss),
        )
    assert len(caught) == 1
    assert unreached(table.traces) == ["idle.weight"]
    assert table.traces["idle.weight"].value == 0
    assert table.traces["idle.weight"].converged
    assert table.traces["used.weight"].value > 0
    assert all(table.effects["idle.weight", bits].response == 0 for bits in (2, 3, 4, 8))


def test_a_loss_that_reaches_no_weight_gives_zeros():
    replica = make_replica("linear")
    replica.loss = lambda outputs, batch: torch.zeros(())
    setup = make_setup("linear", replica)
    found = measure_traces(
        setup, LocalPool(replica), 3, SensitivityConfig(trace_loss="loss", estimator="hutchinson")
    )
    assert unreached(found) == ["0.weight"]
    assert found["0.weight"].num_draws == 8


def test_errors_that_stay_large_are_warned_of_once():
    replica = make_replica("conv")
    setup = make_setup("conv", replica)
    ranges = make_ranges(setup, replica)
    options = {"relative_error": 1e-4, "max_draws": 4, "estimator": "hutchinson"}
    text = (
        r"3 of 3 traces did not reach a standard error of 0% over probes in 4 draws; the worst: '\w+\.weight'"
    )
    with pytest.warns(UserWarning, match=text) as caught:
        table = measure_sensitivity(
            setup,
            ranges,
            lambda part: LocalPool(replica),
            {DataSet.CALIBRATION: 3},
            SensitivityConfig(**options),
        )
    assert len(caught) == 1
    assert not any(trace.converged for trace in table.traces.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure_sensitivity(
            setup,
            ranges,
            lambda part: LocalPool(replica),
            {DataSet.CALIBRATION: 3},
            SensitivityConfig(relative_error=0.5),
        )


def test_what_cannot_be_measured_is_refused():
    replica = make_replica("relu")
    setup = make_setup("relu", replica)
    with pytest.raises(ConfigError, match="'hutchinsen' is unknown; known: hutchinson"):
        make_estimator("hutchinsen")
    with pytest.raises(ConfigError, match=r"sensitivity\.max_draws.*greater than or equal to 2"):
        load_config(assignments=["sensitivity.max_draws=1"])
    replica.shards["calibration"][2][0][1, 0] = float("nan")
    with pytest.raises(DataError, match="output is not finite on shard 2 of the calibration data"):
        measure_traces(setup, LocalPool(replica), 3, SensitivityConfig())
    with pytest.raises(
        DataError, match=r"trace of '0\.weight' is not finite on shard 2 of the calibration data"
    ):
        measure_traces(setup, LocalPool(replica), 3, SensitivityConfig(estimator="hutchinson"))
