"""Calibration and sensitivity of a model that takes only a few samples at once."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raysearch.calibration import calibrate
from raysearch.cluster.pool import LocalPool
from raysearch.config import CalibrationConfig, PlacementConfig, SensitivityConfig
from raysearch.errors import UnitError
from raysearch.evaluation import DataSet, Divergence, Replica, default_forward
from raysearch.placement import place_quantizers
from raysearch.records import BitAssignment
from raysearch.sensitivity.estimators import make_estimator
from raysearch.sensitivity.measure import measure_sensitivity
from raysearch.simulation import Judgement, MeasuredObjective
from raysearch.simulation.simulated_model import SimulatedModel
from tests.support.trace_draws import draw

pytestmark = pytest.mark.slow

LIMIT = [99, 99]
"""Samples that fit without a graph, and with one."""
SIZES: list[int] = []


class Greedy(nn.Module):
    """A small net that asks for more memory than there is, after its first layer has run."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 4)

    def forward(self, x):
        SIZES.append(len(x))
        x = self.conv(x)
        if len(x) > LIMIT[x.requires_grad]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        x = F.relu(self.norm(x))
        return self.head((x + x.flip(2)).mean((2, 3)))


@pytest.fixture(autouse=True)
def _limits():
    LIMIT[:] = [99, 99]
    yield
    LIMIT[:] = [99, 99]


def loss(outputs, batch):
    return F.cross_entropy(outputs, batch[1])


@cache
def placed():
    """The model, its data and places; capture costs more than all else."""
    torch.manual_seed(0)
    model = Greedy().eval()
    shards = [(torch.randn(size, 2, 5, 5), torch.arange(size) % 4) for size in (10, 7)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        setup = place_quantizers(model, (shards[0][0][:2],), PlacementConfig(weight_bit_widths=(2, 4)))
    return model, shards, setup


def make_case():
    model, shards, setup = placed()
    return Replica(model, default_forward, {"calibration": shards}, Divergence("kl"), loss), setup


def measure_all(estimator, limit, **options):
    """Ranges, the sensitivity table and a trial, of one kind of draw."""
    replica, setup = make_case()
    LIMIT[:] = limit
    pool = LocalPool(replica)
    ranges = calibrate(setup, pool, 2, CalibrationConfig(weights="min_max", **options))
    table = measure_sensitivity(
        setup,
        ranges,
        lambda part: pool,
        {DataSet.CALIBRATION: 2},
        SensitivityConfig(estimator=estimator, max_draws=4, relative_error=10.0),
    )
    widest = BitAssignment.extreme(setup, -1)
    found = MeasuredObjective(setup, ranges, pool, Judgement(data=DataSet.CALIBRATION))(
        {0: widest}, range(2)
    )[0]
    return ranges, table, float(np.mean(np.concatenate([values for values, _ in found.values()])))


@pytest.mark.parametrize(("estimator", "activations"), [("ggn", "mse"), ("hutchinson", "mean_percentile")])
def test_the_stages_finish_in_halves_and_find_the_same(estimator, activations):
    ranges, table, trial = measure_all(estimator, (99, 99), activations=activations)
    SIZES.clear()
    found_ranges, found, found_trial = measure_all(estimator, (4, 3), activations=activations)
    assert sum(size > 4 for size in SIZES) <= 12, "sizes that failed are not tried again and again"
    for key, known in ranges.ranges.items():
        np.testing.assert_allclose(found_ranges[key].scale, known.scale, rtol=1e-6)
        np.testing.assert_array_equal(found_ranges[key].zero_point, known.zero_point)
    np.testing.assert_allclose(found.gram, table.gram, rtol=1e-3, atol=1e-5 * table.gram.max())
    for name, trace in table.traces.items():
        assert found.traces[name].value == pytest.approx(trace.value, rel=1e-4)
        assert found.traces[name].probe_stderr == pytest.approx(trace.probe_stderr, rel=1e-3)
    for option, effect in table.effects.items():
        assert found.effects[option].divergence == pytest.approx(effect.divergence, rel=1e-3, abs=1e-7)
    assert found_trial == pytest.approx(trial, rel=1e-3)


JUDGES = {
    "divergence": None,
    "loss": loss,
    "sum": lambda outputs, batch: F.cross_entropy(outputs, batch[1], reduction="sum"),
    "spread": lambda outputs, batch: float(outputs.argmax(1).double().std()),
}


@pytest.mark.parametrize("objective", JUDGES)
def test_trials_finish_in_halves_and_a_judge_sees_the_whole_shard(objective):
    replica, setup = make_case()
    ranges = calibrate(
        setup, LocalPool(replica), 2, CalibrationConfig(weights="min_max", activations="min_max")
    )
    assignments = {0: BitAssignment.extreme(setup, 0), 1: BitAssignment.extreme(setup, -1)}

    def measure(held):
        judge = JUDGES[objective]
        pool = LocalPool(held)
        judgement = Judgement(objective, judge, judge is None, DataSet.CALIBRATION)
        found = MeasuredObjective(setup, ranges, pool, judgement)(assignments, range(2))
        return {(trial, shard): pair for trial, by in found.items() for shard, pair in by.items()}

    whole = measure(replica)
    small, _ = make_case()
    LIMIT[:] = [3, 3]
    SIZES.clear()
    pieces = measure(small)
    assert sum(size > 3 for size in SIZES) <= 3, "sizes that failed are not tried again"
    for key, (values, sizes) in whole.items():
        assert pieces[key][0] == pytest.approx(values, rel=1e-4, abs=1e-7)
        assert pieces[key][1].tolist() == sizes.tolist()


@pytest.mark.parametrize("name", ["ggn-top", "ggn-exact", "fisher", "joint", "xtrace", "xnystrace"])
def test_draws_of_pieces_are_those_of_the_shard(name):
    replica, _ = make_case()
    weights = ("conv.weight", "head.weight")
    loss = "divergence" if name == "xnystrace" else "loss"
    whole = draw(make_estimator(name), replica, weights, loss, draws=range(2))
    small, _ = make_case()
    LIMIT[:] = [99, 3]
    SIZES.clear()
    pieces = draw(make_estimator(name), small, weights, loss, draws=range(2))
    assert 10 in SIZES
    assert 3 in SIZES
    for weight in weights:
        assert pieces[weight].shape == whole[weight].shape
        assert pieces[weight] == pytest.approx(whole[weight], rel=1e-4)


@pytest.mark.parametrize("name", ["xtrace", "xnystrace"])
def test_memory_that_runs_out_between_two_products_changes_no_draw(name):
    """The graph of the whole shard is at hand when a product of it finds no room."""
    replica, _ = make_case()
    weights = ("conv.weight", "head.weight")
    whole = draw(make_estimator(name), replica, weights, draws=range(2))
    small, _ = make_case()
    backwards = []

    def scarce(gradient):
        backwards.append(len(SIZES))
        if len(backwards) == 6:
            LIMIT[1] = 4
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = small.model.conv.weight.register_hook(scarce)
    try:
        pieces = draw(make_estimator(name), small, weights, draws=range(2))
    finally:
        handle.remove()
    assert len(backwards) > 6
    for weight in weights:
        assert pieces[weight] == pytest.approx(whole[weight], rel=1e-4)


def test_where_a_recording_does_not_fit_full_forwards_go_on():
    replica, setup = make_case()
    ranges = calibrate(
        setup, LocalPool(replica), 2, CalibrationConfig(weights="min_max", activations="min_max")
    )
    twin, plain = SimulatedModel(replica.model, setup, ranges), SimulatedModel(replica.model, setup, ranges)
    twin.record(replica, setup.options(), "calibration", 0)
    option = BitAssignment({"conv.weight": 2})
    expected = plain.outputs(replica, option, "calibration", 0)
    LIMIT[:] = [4, 4]
    got = twin.later_outputs(replica, option, "calibration", 0)
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert not twin._prefix.holds(("calibration", 0))
    SIZES.clear()
    twin.record(replica, setup.options(), "calibration", 0)
    assert not SIZES, "no recording is tried again"


def test_one_sample_that_does_not_fit_ends_the_unit_with_its_name():
    replica, setup = make_case()
    ranges = calibrate(
        setup, LocalPool(replica), 2, CalibrationConfig(weights="min_max", activations="min_max")
    )
    LIMIT[:] = [0, 0]
    twin = SimulatedModel(replica.model, setup, ranges)
    with pytest.raises(UnitError, match="shard 1 of the calibration data"):
        twin.outputs(replica, BitAssignment({"conv.weight": 2}), "calibration", 1)
