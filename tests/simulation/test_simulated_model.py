"""The simulated model's outputs against the ordinary controller's, bit for bit."""

from __future__ import annotations

import copy
import warnings
import weakref

import pytest
import torch

from raysearch.calibration import calibrate
from raysearch.cluster.pool import LocalPool
from raysearch.config import CalibrationConfig, PlacementConfig
from raysearch.controller import create_controller
from raysearch.errors import PlacementError
from raysearch.evaluation import Divergence, Replica, WorkerCache
from raysearch.placement import place_quantizers
from raysearch.quantizer import SymmetricQuantizer
from raysearch.records import BitAssignment, QuantizerSetup, RangeTable
from raysearch.sensitivity.perturbation import measure_perturbations
from raysearch.simulation import DeployedWeights, WeightCache, bits_of
from raysearch.simulation.simulated_model import SimulatedModel, simulated_model
from tests.support import model_zoo
from tests.support.small_replicas import make_ranges, make_replica, make_setup


def run(model, batch):
    return model_zoo.output(model(*batch))


def make_case(name, weights_only=False, **options):
    model = model_zoo.build(name)
    replica = Replica(
        model, run, {"calibration": [model_zoo.inputs(name, 4), model_zoo.inputs(name, 3)]}, Divergence("mse")
    )
    drop = ("*input*",) if weights_only else ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        setup = place_quantizers(
            model,
            model_zoo.inputs(name, 2),
            PlacementConfig(
                weight_bit_widths=(2, 4), activation_bit_widths=(4,), ignored_scopes=drop, **options
            ),
        )
    ranges = calibrate(
        setup, LocalPool(replica), 2, CalibrationConfig(weights="min_max", activations="min_max")
    )
    return replica, setup, ranges


def controlled(replica, setup, ranges, assignment, shard):
    controller = create_controller(copy.deepcopy(replica.model), setup, ranges, assignment)
    return replica.run(controller.model, replica.shards["calibration"][shard])


@pytest.mark.parametrize(
    ("name", "weights_only"),
    [(name, False) for name in model_zoo.NETS]
    + [("encoder", True), ("decoder", True), ("shared_relu", True)],
)
def test_every_option_gives_the_bits_of_the_controller_in_full_and_in_part(name, weights_only):
    replica, setup, ranges = make_case(name, weights_only)
    twin = SimulatedModel(replica.model, setup, ranges)
    for shard in (0, 1):
        twin.record(replica, setup.options(), "calibration", shard)
        # Backwards, so that an earlier option's leftovers would show.
        for option in reversed(setup.options()):
            assignment = BitAssignment(dict([option]))
            expected = controlled(replica, setup, ranges, assignment, shard)
            arguments = replica, assignment, "calibration", shard
            assert torch.equal(twin.later_outputs(*arguments), expected), option
            if shard:
                assert torch.equal(twin.outputs(*arguments), expected), option


@pytest.mark.parametrize("name", ["digits", "tied", "attention"])
def test_whole_assignments_give_the_bits_of_the_controller(name):
    replica, setup, ranges = make_case(name)
    twin = SimulatedModel(replica.model, setup, ranges)
    for bits in ({}, BitAssignment.extreme(setup, 0).bits, {}, BitAssignment.extreme(setup, -1).bits):
        expected = controlled(replica, setup, ranges, BitAssignment(dict(bits)), 0)
        assert torch.equal(twin.outputs(replica, BitAssignment(dict(bits)), "calibration", 0), expected)


@pytest.fixture
def quantizations(monkeypatch):
    """Names of the weights that were fake-quantized, in turn."""
    calls = []
    original = SymmetricQuantizer.forward

    def counted(self, x):
        if self.enabled:
            calls.append((self.name, self.num_bits))
        return original(self, x)

    monkeypatch.setattr(SymmetricQuantizer, "forward", counted)
    return calls


def test_a_weight_is_quantized_once_a_width(quantizations):
    replica, setup, ranges = make_case("digits")
    twin = SimulatedModel(replica.model, setup, ranges)
    for _ in range(3):
        for index in (0, -1):
            for shard in (0, 1):
                twin.outputs(replica, BitAssignment.extreme(setup, index), "calibration", shard)
    weights = list(setup.of_kind("weight"))
    assert sorted(quantizations) == sorted((name, bits) for name in weights for bits in (2, 4))


def test_beyond_the_limit_weights_are_made_anew_and_the_bits_stay(quantizations):
    replica, setup, ranges = make_case("digits")
    size = {n: 4 * setup.points[n].num_elements for n in setup.of_kind("weight")}
    first = next(iter(size))
    # Half of the limit is for weights: the first at both widths, and nothing else that is as large.
    twin = SimulatedModel(replica.model, setup, ranges, 2 * 2 * size[first])
    rich = SimulatedModel(replica.model, setup, ranges)
    for round_ in range(2):
        quantizations.clear()
        for option in setup.options():
            arguments = replica, BitAssignment(dict([option])), "calibration", 0
            found = twin.outputs(*arguments)
            poor = [name for name, _ in quantizations]
            assert torch.equal(found, rich.outputs(*arguments))
        assert (first in poor) == (round_ == 0)
    assert "head.weight" in poor


def test_of_a_whole_assignment_one_weight_is_there_at_a_time(monkeypatch):
    replica, setup, ranges = make_case("digits", weights_only=True)
    make, get, weights, alive = DeployedWeights.make, WeightCache.get, [], []

    def counted(self, name, scheme):
        alive.append(sum(weight() is not None for weight in weights))
        return make(self, name, scheme)

    def noted(self, name, scheme):
        weight = get(self, name, scheme)
        weights.append(weakref.ref(weight))
        return weight

    monkeypatch.setattr(DeployedWeights, "make", counted)
    monkeypatch.setattr(WeightCache, "get", noted)
    twin = SimulatedModel(replica.model, setup, ranges, 0)
    twin.outputs(replica, BitAssignment.extreme(setup, 0), "calibration", 0)
    assert alive == [0] * len(setup.of_kind("weight"))
    assert not any(weight() is not None for weight in weights)


def test_where_a_gpu_has_room_the_weights_of_an_assignment_are_made_once(quantizations, monkeypatch):
    replica, setup, ranges = make_case("digits")
    monkeypatch.setattr(WeightCache, "_has_spare", staticmethod(lambda weight: True))
    monkeypatch.setattr(WeightCache, "end_forward", lambda self: None)
    twin = SimulatedModel(replica.model, setup, ranges, 0)
    for index in (0, -1, 0):
        for shard in (0, 1):
            twin.outputs(replica, BitAssignment.extreme(setup, index), "calibration", shard)
    assert len(quantizations) == 3 * len(setup.of_kind("weight"))


def test_the_float_model_is_shared_and_untouched():
    replica, setup, ranges = make_case("digits")
    before = copy.deepcopy(replica.model.state_dict())
    twin = SimulatedModel(replica.model, setup, ranges)
    twin.outputs(replica, BitAssignment.extreme(setup, 0), "calibration", 0)
    assert all(torch.equal(value, before[name]) for name, value in replica.model.state_dict().items())
    assert not any("forward" in module.__dict__ for module in replica.model.modules())
    twin.apply(BitAssignment({}))
    own = {p.data_ptr() for p in replica.model.parameters()}
    assert {p.data_ptr() for p in twin.model.parameters() if p.numel() > 1} <= own | {
        p.data_ptr() for module in twin._activations.values() for p in module.parameters()
    }


def test_the_hash_of_outputs_tells_what_equality_does():
    nan, one = float("nan"), {"a": torch.tensor([0.0, 1.0, float("nan")])}
    assert bits_of(one) == bits_of({"a": torch.tensor([-0.0, 1.0, nan])})
    others = [torch.tensor([0.0, 1.0, 2.0]), torch.tensor([[0.0, 1.0, nan]]), torch.tensor([0.0, 1.0])]
    assert all(bits_of({"a": other}) != bits_of(one) for other in others)
    half = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    assert bits_of(half) == bits_of(half.clone()) != bits_of(half + 1)


def test_what_does_not_fit_is_refused_and_nothing_changes():
    replica, setup, ranges = make_case("digits")
    twin = SimulatedModel(replica.model, setup, ranges)
    first = twin.outputs(replica, BitAssignment({"stem.weight": 2}), "calibration", 0)
    with pytest.raises(PlacementError, match="allowed: 2, 4"):
        twin.apply(BitAssignment({"stem.weight": 3}))
    assert torch.equal(replica.run(twin.model, replica.shard("calibration", 0)), first)
    with pytest.raises(PlacementError, match="made for another model"):
        SimulatedModel(model_zoo.build("text"), setup, ranges)


def test_asymmetric_weights_are_perturbed_by_the_quantizer_that_is_deployed():
    replica, setup, ranges = make_case("text", overrides={"hidden.weight": {"mode": "asymmetric"}})
    found = measure_perturbations(setup, ranges, LocalPool(replica))
    controller = create_controller(
        copy.deepcopy(replica.model), setup, ranges, BitAssignment({"hidden.weight": 2})
    )
    error = (controller.model.hidden.weight - replica.model.hidden.weight).detach().double().square().sum()
    assert found["hidden.weight", 2] == pytest.approx(float(error), rel=1e-9)


def test_the_twin_is_built_once_for_equal_content_and_anew_for_other():
    replica = make_replica("relu")
    setup = make_setup("relu", replica)
    ranges = make_ranges(setup, replica)
    twin = simulated_model(replica, setup, ranges)
    assert simulated_model(replica, setup, ranges) is twin
    same = QuantizerSetup.from_json(setup.to_json())
    assert simulated_model(replica, same, RangeTable(dict(ranges.ranges))) is twin
    other = calibrate(setup, LocalPool(replica), 3, CalibrationConfig(weights="min_max"))
    assert simulated_model(replica, setup, other) is not twin
    assert copy.deepcopy(replica).__getstate__()["cache"] == WorkerCache()
