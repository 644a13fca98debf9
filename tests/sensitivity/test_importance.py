"""Samples drawn by importance: unbiased, with honest errors, and better than as many taken at random."""

import numpy as np
import pytest
import torch

from raysearch.artifacts import RunStore, UnitLog
from raysearch.cluster.pool import LocalPool
from raysearch.cluster.resuming import ResumingPool
from raysearch.config import SensitivityConfig, load_config
from raysearch.config.estimators import ESTIMATORS, PER_SAMPLE
from raysearch.errors import ConfigError, DataError
from raysearch.evaluation import DataSet, Divergence
from raysearch.sensitivity.estimators import make_estimator
from raysearch.sensitivity.estimators.hutchinson import Hutchinson
from raysearch.sensitivity.importance import UNIFORM_SHARE, draw_sample
from raysearch.sensitivity.traces import measure_traces
from tests.support.small_replicas import inputs_of, make_replica, make_setup

SIZES = (16, 16, 16, 9)


def confident_replica(name="relu"):
    """One sample in eight is unsure, and holds most of the trace."""
    replica = make_replica(name, sizes=SIZES, scale=2.5)
    for shard, (inputs, _) in enumerate(replica.shards["calibration"]):
        inputs.copy_(inputs_of(name, len(inputs), 77 + shard))
        inputs[torch.arange(len(inputs)) % 8 != 0] *= 4
    replica.shards = {
        "calibration": replica.shards["calibration"][:1],
        "traces": replica.shards["calibration"],
    }
    return replica


def whole(replica, setup, estimator="ggn-exact"):
    return measure_traces(
        setup, LocalPool(replica), len(SIZES), SensitivityConfig(estimator=estimator), data=DataSet.TRACES
    )


def drawn(replica, setup, count, seed, estimator="ggn-exact"):
    return measure_traces(
        setup,
        LocalPool(replica),
        len(SIZES),
        SensitivityConfig(estimator=estimator, importance_draws=count),
        data=DataSet.TRACES,
        seed=seed,
    )


def test_the_sample_weighs_back_to_the_whole():
    replica = confident_replica()
    sample = draw_sample(LocalPool(replica), DataSet.TRACES, len(SIZES), 5000, seed=1)
    places = [place for shard in sample.rows for place in shard]
    weights = np.concatenate(sample.weights)
    assert len(places) == len(weights) == 5000
    assert weights.max() <= 1 / UNIFORM_SHARE
    # Σ of any function over all samples, here an indicator of each: every one counts 1/N.
    total = {}
    for place, weight in zip(places, weights, strict=True):
        total[place] = total.get(place, 0.0) + weight / 5000
    assert sum(total.values()) == pytest.approx(1, abs=0.1)
    flat = replica.shards["traces"][0][0]
    assert len(sample.view(replica, 0).all_shards) == len(sample.rows)
    for index, rows in enumerate(sample.rows):
        view = sample.view(replica, index)
        assert view.name == f"shard {index} of the trace sample data"
        batch = view.batch()
        assert len(rows) == len(batch[0])
        for (shard, row), inputs in zip(rows, batch[0], strict=True):
            assert torch.equal(inputs, replica.shards["traces"][shard][0][row])
    assert max(len(rows) for rows in sample.rows) == len(flat)


@pytest.mark.parametrize("estimator", ["ggn-exact", "ggn"])
def test_the_estimate_is_unbiased_and_its_error_is_honest(estimator):
    replica = confident_replica()
    setup = make_setup("relu", replica)
    truth = whole(replica, setup)
    found = [drawn(replica, setup, 12, seed, estimator) for seed in range(60)]
    for name, trace in truth.items():
        values = np.array([run[name].value for run in found])
        stated = np.array([run[name].stderr for run in found])
        spread = values.std(ddof=1)
        assert abs(values.mean() - trace.value) < 4 * spread / np.sqrt(len(values))
        assert 0.7 < np.sqrt((stated**2).mean()) / spread < 1.4
        assert {run[name].num_samples for run in found} == {12}


@pytest.mark.slow
def test_beats_as_many_samples_taken_at_random():
    replica = confident_replica()
    setup = make_setup("relu", replica)
    per_sample = {}
    for shard, (inputs, labels) in enumerate(replica.shards["traces"]):
        for row in range(len(inputs)):
            one = confident_replica()
            one.shards = {"calibration": [(inputs[row : row + 1], labels[row : row + 1])]}
            found = measure_traces(setup, LocalPool(one), 1, SensitivityConfig(estimator="ggn-exact"))
            per_sample[shard, row] = {name: trace.value for name, trace in found.items()}
    for name, trace in whole(replica, setup).items():
        every = np.array([values[name] for values in per_sample.values()])
        assert every.mean() == pytest.approx(trace.value, rel=1e-4)
        at_random = every.std() / np.sqrt(12)
        by_importance = np.sqrt(
            np.mean([(drawn(replica, setup, 12, seed)[name].value - trace.value) ** 2 for seed in range(40)])
        )
        assert by_importance < 0.6 * at_random


def test_draws_are_by_the_curvature_of_any_divergence():
    """Of squared errors every output has the same: samples are drawn alike, and the mean is theirs."""
    replica = confident_replica()
    replica.divergence = Divergence("mse")
    setup = make_setup("relu", replica)
    sample = draw_sample(LocalPool(replica), DataSet.TRACES, len(SIZES), 8, seed=0)
    assert np.concatenate(sample.weights) == pytest.approx(1)
    truth = whole(replica, setup)
    runs = [drawn(replica, setup, 12, seed) for seed in range(40)]
    for name, trace in truth.items():
        values = np.array([run[name].value for run in runs])
        assert abs(values.mean() - trace.value) < 4 * values.std(ddof=1) / np.sqrt(len(values))


def test_the_seed_alone_decides():
    setup = make_setup("relu", confident_replica())
    first, again = (drawn(confident_replica(), setup, 10, 3, "ggn") for _ in range(2))
    assert first == again
    assert first != drawn(confident_replica(), setup, 10, 4, "ggn")


def test_batches_that_cannot_be_joined_stay_apart():
    replica = confident_replica("embedding")
    texts = [(inputs_of("embedding", 4, n)[:, : 1 + n], torch.zeros(4, dtype=torch.long)) for n in range(3)]
    replica.shards = {"calibration": texts[:1], "traces": texts}
    sample = draw_sample(LocalPool(replica), DataSet.TRACES, 3, 9, seed=0)
    assert all(len({shard for shard, _ in rows}) == 1 for rows in sample.rows)
    assert sum(map(len, sample.rows)) == 9
    traces = measure_traces(
        make_setup("embedding", replica),
        LocalPool(replica),
        3,
        SensitivityConfig(importance_draws=9),
        data=DataSet.TRACES,
    )
    assert all(np.isfinite(trace.value) for trace in traces.values())


def test_a_run_that_is_resumed_draws_the_same(tmp_path):
    store = RunStore(tmp_path, "run")
    store.create({}, {}, {})
    replica = confident_replica()
    setup = make_setup("relu", replica)

    def measured(pool):
        pool = ResumingPool(pool, UnitLog(store), "traces", lambda done, total: None)
        settings = SensitivityConfig(importance_draws=10)
        return measure_traces(setup, pool, len(SIZES), settings, data=DataSet.TRACES)

    assert measured(LocalPool(replica)) == measured(Idle())


class Idle:
    """A pool that has nothing left to do."""

    def run(self, function, units, shared=()):
        assert not units
        return iter(())


def test_what_sees_no_single_samples_is_refused():
    assert set(PER_SAMPLE) == {name for name in ESTIMATORS if make_estimator(name).per_sample}
    replica = confident_replica()
    with pytest.raises(ConfigError, match=r"importance_draws is 8.*'hutchinson'.*ggn"):
        measure_traces(
            make_setup("relu", replica),
            LocalPool(replica),
            len(SIZES),
            SensitivityConfig(importance_draws=8),
            estimator=Hutchinson(),
            data=DataSet.TRACES,
        )
    with pytest.raises(ConfigError, match="importance_draws is 8"):
        load_config(overrides={"sensitivity": {"importance_draws": 8, "estimator": "joint"}})


def test_a_sample_that_is_not_finite_is_named():
    replica = confident_replica()
    replica.shards["traces"][2][0][5] = float("nan")
    with pytest.raises(DataError, match="sample 5 of shard 2 of the traces data"):
        draw_sample(LocalPool(replica), DataSet.TRACES, len(SIZES), 4, seed=0)
