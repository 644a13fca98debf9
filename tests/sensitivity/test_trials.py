"""Measured trials against the divergence of the controller's own model."""

from __future__ import annotations

import copy

import pytest
import torch

from raysearch.cluster.pool import LocalPool
from raysearch.controller import create_controller
from raysearch.records import BitAssignment
from raysearch.sensitivity import TrialEvaluator
from tests.sensitivity.nets import make_ranges, make_replica, make_setup


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
    got = TrialEvaluator(setup, ranges, LocalPool(replica), 3, cache_bytes=cache_bytes)(assignments)
    assert list(got) == list(assignments)
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
    TrialEvaluator(setup, ranges, Watched(replica), 3)({1: same, 2: same})
    assert keys == [(same.digest(), shard) for shard in range(3)]
