"""The measured objective against the quantized model run by hand."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch

from raysearch.cluster.pool import LocalPool
from raysearch.controller import create_controller
from raysearch.errors import ConfigError
from raysearch.evaluation import DataSet
from raysearch.evaluation.sampling import random_shards
from raysearch.records import BitAssignment
from raysearch.search import Race
from raysearch.simulation import Judgement, MeasuredObjective
from tests.support.small_replicas import make_ranges, make_replica, make_setup


@pytest.fixture
def case():
    replica = make_replica("linear")
    setup = make_setup("linear", replica)
    replica.loss = lambda outputs, batch: outputs.square().mean()
    return replica, setup, make_ranges(setup, replica)


def by_hand(case, assignment, shard):
    replica, setup, ranges = case
    model = create_controller(copy.deepcopy(replica.model), setup, ranges, assignment).model
    batch = replica.shards["calibration"][shard]
    with torch.no_grad():
        return model(batch[0]), replica.model(batch[0]), batch


def accuracy(outputs, batch):
    return float((outputs.argmax(1) == 0).double().mean())


@pytest.mark.parametrize("objective", ["divergence", "per shard", "loss", "accuracy"])
def test_values_are_those_of_the_quantized_model(case, objective):
    replica, setup, ranges = case
    assignment, other = BitAssignment.extreme(setup, 0), BitAssignment.extreme(setup, -1)
    name = "divergence" if objective == "per shard" else objective
    measure = MeasuredObjective(
        setup,
        ranges,
        LocalPool(replica),
        Judgement(name, accuracy, objective == "divergence", DataSet.CALIBRATION),
    )
    got = measure({4: assignment, 2: other, 9: assignment}, [1, 2])
    assert list(got) == [4, 2, 9]
    assert set(got[4]) == {1, 2}
    for number, bits in ((4, assignment), (2, other), (9, assignment)):
        for shard, (values, sizes) in got[number].items():
            outputs, reference, batch = by_hand(case, bits, shard)
            each = replica.divergence.per_sample(outputs, reference).numpy()
            expected = {
                "divergence": each,
                "per shard": each.mean(keepdims=True),
                "loss": np.array([float(outputs.square().mean())]),
                "accuracy": np.array([accuracy(outputs, batch)]),
            }[objective]
            assert values == pytest.approx(expected, rel=1e-6, abs=1e-12)
            assert sizes.sum() == len(outputs)
            assert len(sizes) == len(values)


def test_a_task_without_the_function_is_told(case):
    replica, setup, ranges = case
    replica.loss = None
    measure = MeasuredObjective(
        setup, ranges, LocalPool(replica), Judgement("loss", data=DataSet.CALIBRATION)
    )
    with pytest.raises(ConfigError, match="objective is 'loss', but the Task has no such function"):
        measure({0: BitAssignment.extreme(setup, 0)}, [0])


def mean_divergence(replica, model):
    with torch.no_grad():
        values = [
            replica.divergence.per_sample(model(batch[0]), replica.model(batch[0]))
            for batch in replica.shards["calibration"]
        ]
    return float(torch.cat(values).mean())


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
@pytest.mark.parametrize(("name", "kind"), [("conv", "mse"), ("attention", "kl"), ("tied", "cosine")])
def test_trials_equal_the_quantized_model(name, kind, cache_bytes):
    replica = make_replica(name, kind=kind)
    setup = make_setup(name, replica, weight_bit_widths=(2, 4, 8), activation_bit_widths=(3, 8))
    ranges = make_ranges(setup, replica)
    assignments = {
        7: BitAssignment.extreme(setup, 0),
        3: BitAssignment.extreme(setup, -1),
        9: BitAssignment.uniform(setup, 4),
        4: BitAssignment({}),
        5: BitAssignment(dict(reversed(BitAssignment.uniform(setup, 4).bits.items()))),
    }
    measure = MeasuredObjective(
        setup, ranges, LocalPool(replica), Judgement(data=DataSet.CALIBRATION), cache_bytes=cache_bytes
    )
    got = {number: found.value for number, found in Race(measure, 3)(assignments).items()}
    assert set(got) == set(assignments)
    for number, assignment in assignments.items():
        model = create_controller(copy.deepcopy(replica.model), setup, ranges, assignment).model
        # Divergences of 8-bit models are differences of nearly equal numbers.
        assert got[number] == pytest.approx(mean_divergence(replica, model), rel=1e-6, abs=1e-12)
    assert got[4] == 0
    assert got[9] == got[5]
    assert got[7] > got[3]


def test_an_assignment_is_measured_once_however_many_trials_have_it():
    replica = make_replica("linear")
    setup = make_setup("linear", replica)
    ranges = make_ranges(setup, replica)
    keys = []

    class Watched(LocalPool):
        def run(self, function, units, shared=()):
            keys.extend(units)
            return super().run(function, units, shared)

    same = BitAssignment.uniform(setup, 4)
    MeasuredObjective(setup, ranges, Watched(replica), Judgement(data=DataSet.CALIBRATION))(
        {1: same, 2: same}, range(3)
    )
    assert keys == [(same.digest(), shard) for shard in range(3)]


def batches(sizes):
    starts = np.cumsum([0, *sizes])
    return [
        {"x": torch.arange(a, b).reshape(-1, 1).float(), "y": (torch.arange(a, b),)}
        for a, b in pairwise(starts)
    ]


def test_a_random_sample_keeps_pairs_together_and_has_every_sample_once():
    shards, single = random_shards(batches([5, 7, 4]), 0, 6, seed=1)
    assert single
    assert [len(shard["x"]) for shard in shards] == [6, 6, 4]
    drawn = torch.cat([shard["y"][0] for shard in shards])
    assert sorted(drawn.tolist()) == list(range(16))
    assert drawn.tolist() != list(range(16))
    assert torch.equal(torch.cat([shard["x"] for shard in shards]).flatten(), drawn.float())
    again, _ = random_shards(batches([5, 7, 4]), 9, 6, seed=1)
    assert torch.cat([shard["y"][0] for shard in again]).tolist() == drawn[:9].tolist()
    other, _ = random_shards(batches([5, 7, 4]), 0, 6, seed=2)
    assert torch.cat([shard["y"][0] for shard in other]).tolist() != drawn.tolist()


@pytest.mark.parametrize("change", ["width", "text", "scalar"])
def test_batches_that_do_not_fit_together_are_drawn_whole(change):
    data = batches([4, 4, 4])
    for index, batch in enumerate(data):
        if change == "width":
            batch["x"] = batch["x"].repeat(1, index + 1)
        else:
            batch[change] = "some text" if change == "text" else torch.tensor(1.0)
    shards, single = random_shards(data, 5, 2, seed=0)
    assert not single
    assert len(shards) == 2
    assert all(any(shard is batch for batch in data) for shard in shards)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_units_come_shard_by_shard_and_on_a_gpu_assignment_by_assignment(case, on_gpu):
    replica, setup, ranges = case
    keys = []

    class Noting(LocalPool):
        def run(self, function, units, shared=()):
            keys.extend(units)
            return super().run(function, units, shared)

    judgement = Judgement(data=DataSet.CALIBRATION)
    measure = MeasuredObjective(setup, ranges, Noting(replica), judgement, on_gpu=on_gpu)
    measure({index: BitAssignment.extreme(setup, index - 1) for index in range(2)}, [0, 1])
    places = [digest if on_gpu else shard for digest, shard in keys]
    assert places == [places[0]] * 2 + [places[2]] * 2
    assert len(set(keys)) == 4
