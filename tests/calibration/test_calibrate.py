"""The calibration stage: activation ranges against numpy, merging, and nothing left behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from raysearch.calibration.calibrate import calibrate, observe_shard, weight_ranges
from raysearch.calibration.grid import affine_range
from raysearch.calibration.observer import ObservationPlan, Observer
from raysearch.calibration.rules import choose_rules
from raysearch.calibration.weights import min_max_scale, mse_scale
from raysearch.cluster.pool import LocalPool
from raysearch.config import CalibrationConfig, PlacementConfig
from raysearch.errors import DataError
from raysearch.evaluation import Divergence, Replica, default_forward
from raysearch.evaluation.forward import frozen_eval
from raysearch.evaluation.model.model_hash import hash_model
from raysearch.placement import place_quantizers
from raysearch.quantizer import AsymmetricQuantizer, quant_levels
from raysearch.records import Granularity

BITS = (2, 3, 4, 5, 6, 7, 8)


class Net(nn.Module):
    """Two readers of one tensor, and a residual addition."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.head = (
            nn.Linear(6, 6),
            nn.Linear(6, 6),
            nn.BatchNorm1d(6),
            nn.Linear(6, 3),
        )

    def forward(self, x):
        y = self.norm(self.a(x)).relu()
        return self.head(y + self.b(x))


def samples(count=29, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator) * torch.rand(count, 1, generator=generator) * 3


def make_replica(x, sizes, forward=default_forward):
    torch.manual_seed(0)
    model = Net().eval()
    return Replica(model, forward, {"calibration": list(x.split(sizes))}, Divergence("mse"))


def place(replica, **options):
    return place_quantizers(replica.model, (samples(2),), PlacementConfig(**options))


def as_bytes(ranges):
    return {key: (r.scale.tobytes(), r.zero_point.tobytes(), r.signed) for key, r in ranges.ranges.items()}


def seen_by_numpy(model, x):
    """The tensors that activation quantizers read, [N, values], by quantizer id."""
    with torch.no_grad():
        y = model.norm(model.a(x)).relu()
        z = model.b(x)
        return {
            "a.input": x.numpy(),
            "add0.input0": y.numpy(),
            "add0.input1": z.numpy(),
            "head.input": (y + z).numpy(),
        }


def expected_bounds(values, estimator):
    low, high = values.min(1).astype(np.float64), values.max(1).astype(np.float64)
    if estimator == "min_max":
        return float(low.min()), float(high.max())
    return float(low.mean()), float(high.mean())


@pytest.mark.parametrize("estimator", ["min_max", "mean_min_max"])
@pytest.mark.parametrize("sizes", [[29], [10, 10, 9], [1] * 29])
def test_activation_ranges_are_numpys_whatever_the_batches(estimator, sizes):
    x = samples()
    replica = make_replica(x, sizes)
    setup = place(replica, activation_bit_widths=BITS)
    ranges = calibrate(setup, LocalPool(replica), len(sizes), CalibrationConfig(activations=estimator))
    expected = seen_by_numpy(replica.model, x)
    assert sorted(expected) == sorted(setup.of_kind("activation"))
    for name, values in expected.items():
        low, high = expected_bounds(values, estimator)
        for bits in BITS:
            found = ranges[name, bits]
            scale = (max(high, 0) - min(low, 0)) / (2**bits - 1)
            assert found.scale == pytest.approx([scale], rel=1e-6)
            assert found.zero_point.tolist() == [round(-min(low, 0) / scale)]
            assert not found.signed


@pytest.mark.parametrize("estimator", ["min_max", "mean_min_max"])
def test_merged_shards_equal_a_single_pass(estimator):
    # The input of the net is not computed, so its ranges have no rounding of their own.
    x = samples()
    found = []
    for sizes in ([29], [10, 10, 9], [7, 1, 21], [1] * 29):
        replica = make_replica(x, sizes)
        setup = place(replica, activation_bit_widths=BITS)
        ranges = calibrate(setup, LocalPool(replica), len(sizes), CalibrationConfig(activations=estimator))
        found.append({key: value for key, value in as_bytes(ranges).items() if key[0] == "a.input"})
    assert len(found[0]) == len(BITS)
    assert all(entry == found[0] for entry in found)


def test_units_in_any_order_give_the_same_bits():
    replica = make_replica(samples(30), [5] * 6)
    setup = place(replica)

    class Backwards(LocalPool):
        def run(self, function, units, shared=()):
            yield from reversed(list(super().run(function, dict(reversed(units.items())), shared)))

    expected = as_bytes(calibrate(setup, LocalPool(replica), 6))
    assert as_bytes(calibrate(setup, Backwards(replica), 6)) == expected


@pytest.mark.parametrize(("estimator", "function"), [("mse", mse_scale), ("min_max", min_max_scale)])
def test_weight_ranges_are_the_estimators(estimator, function):
    replica = make_replica(samples(), [29])
    setup = place(replica, weight_bit_widths=(2, 5, 8))
    ranges = calibrate(setup, LocalPool(replica), 1, CalibrationConfig(weights=estimator))
    for name in ("a.weight", "b.weight", "head.weight"):
        for bits in (2, 5, 8):
            expected = function(replica.model.get_parameter(name), Granularity(0), bits)
            assert ranges[name, bits].scale.tolist() == expected.tolist()
            assert not ranges[name, bits].zero_point.any()
            assert ranges[name, bits].signed
    unit = weight_ranges(
        replica,
        setup,
        choose_rules(setup, CalibrationConfig(weights=estimator, activations="mse")),
        "head.weight",
    )
    assert sorted(unit) == sorted(f"{b}|{f}" for b in (2, 5, 8) for f in ("scale", "zero_point", "signed"))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("low", "high"),
    [(0.2, 3.1), (0.0, 1.0), (-3.1, -0.2), (-1.0, 0.0), (-0.7, 2.9), (-1e-8, 1e4), (-5.0, 1e-9), (0.0, 0.0)],
)
def test_zero_is_exactly_on_the_grid(low, high, bits):
    _, top = quant_levels(bits, signed=False)
    found = affine_range(np.array([low]), np.array([high]), (0, top))
    scale, zero = float(found.scale[0]), int(found.zero_point[0])
    assert 0 <= zero <= top
    quantizer = AsymmetricQuantizer()
    quantizer.set_range(bits, found)
    with torch.no_grad():
        assert quantizer(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]
        assert float(quantizer.effective_scale()) == scale
    # The grid is as wide as the range and 0, and at most half a step beside it.
    assert (0 - zero) * scale == pytest.approx(min(low, 0), abs=0.5001 * scale + 1e-20)
    assert (top - zero) * scale == pytest.approx(max(high, 0), abs=0.5001 * scale + 1e-20)
    if low >= 0:
        assert zero == 0
    if high <= 0 and low < 0:
        assert zero == top


def test_an_activation_that_is_not_finite_is_named():
    def forward(model, batch):
        return model(batch)

    replica = make_replica(samples(), [10, 10, 9], forward)
    replica.shards["calibration"][1][3, 2] = float("nan")
    with pytest.raises(DataError, match=r"the activation 'a\.input' takes NaN"):
        calibrate(place(replica), LocalPool(replica), 3)


def test_a_weight_that_is_not_finite_is_named():
    replica = make_replica(samples(), [29])
    setup = place(replica, ignored_scopes=("*input*",))
    with torch.no_grad():
        replica.model.b.weight[1, 1] = float("nan")
    with pytest.raises(DataError, match=r"the weight 'b\.weight' holds NaN"):
        calibrate(setup, LocalPool(replica), 1)


def test_an_activation_that_no_forward_reads_is_named():
    replica = make_replica(samples(), [29], lambda model, batch: model.a(batch))
    with pytest.raises(DataError, match=r"no forward of the calibration data reads the activation 'add0"):
        calibrate(place(make_replica(samples(), [29])), LocalPool(replica), 1)


def state_of(model):
    hooks = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_forward_pre_hooks_with_kwargs",
        "_forward_hooks_always_called",
    )
    return (
        hash_model(model),
        list(model.state_dict()),
        [(name, type(module), module.training) for name, module in model.named_modules()],
        [(name, p.requires_grad, p.grad) for name, p in model.named_parameters()],
        [len(getattr(module, name)) for module in model.modules() for name in hooks],
    )


def test_the_replica_is_left_as_found():
    replica = make_replica(samples(), [10, 19])
    setup = place(replica)
    replica.model.a.weight.requires_grad_(False)
    replica.model.norm.train()
    before, rng = state_of(replica.model), torch.get_rng_state()
    calibrate(setup, LocalPool(replica), 2)
    assert state_of(replica.model) == before
    assert torch.equal(torch.get_rng_state(), rng)


def test_the_replica_is_left_as_found_by_a_failure():
    class Fault(Exception):
        pass

    def forward(model, batch):
        model(batch)
        raise Fault

    replica = make_replica(samples(), [29], forward)
    setup = place(make_replica(samples(), [29]))
    wanted = {name: ObservationPlan(None, 12, (1, 99)) for name in setup.of_kind("activation")}
    before = state_of(replica.model)
    with pytest.raises(Fault):
        observe_shard(replica, setup, wanted, 0)
    assert state_of(replica.model) == before
    # In the middle of a forward, where the tap of additions is active.
    replica.forward = default_forward
    replica.shards = {"calibration": [torch.zeros(3, 5)]}
    with pytest.raises(RuntimeError, match="shapes"):
        observe_shard(replica, setup, wanted, 0)
    assert state_of(replica.model) == before
    assert torch.add(torch.ones(2), torch.ones(2)).tolist() == [2, 2]


def test_an_observer_pools_calls_by_sample_and_forgets():
    observer = Observer()

    def collected():
        return observer.collect()["rows"][:, 0]

    first, second = torch.tensor([[1.0, 5.0], [2.0, 3.0]]), torch.tensor([[0.0, 4.0], [2.5, 9.0]])
    assert observer(first) is first
    observer(second)
    assert collected().tolist() == [[0.0, 5.0], [2.0, 9.0]]
    assert collected().shape == (0, 2)
    observer(first)
    observer(first[:1])
    assert collected().tolist() == [[1.0, 5.0], [2.0, 3.0], [1.0, 5.0]]
    observer(torch.tensor([[1.0, float("nan")]]))
    assert np.isnan(collected()).all()


def test_an_observer_counts_a_tensor_with_several_readers_once():
    observer = Observer(ObservationPlan(None, 12, (0, 50)))
    x = torch.tensor([[1.0, 2.0, 4.0]])
    for _ in range(3):
        observer(x)
    x += 8
    observer(x)
    found = observer.collect()
    assert found["values"].tolist() == [1, 2, 4, 9, 10, 12]
    assert found["counts"].tolist() == [1] * 6
    assert found["rows"].tolist() == [[[1, 12, 1, 6.5]]]


def test_an_observer_keeps_its_record_where_a_model_is_left_as_found():
    observer = Observer(ObservationPlan(None, 12, (0, 50)))
    x = torch.tensor([[1.0, 2.0, 4.0]])
    with frozen_eval(observer):
        observer(x)
    recorded = observer.collect()
    assert recorded["values"].tolist() == [1, 2, 4]
    assert recorded["rows"].tolist() == [[[1, 4, 1, 2]]]
    observer(x)
    with frozen_eval(observer):
        observer.collect()
    assert observer.collect()["rows"].shape == (0, 1, 4)
