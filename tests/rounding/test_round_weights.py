"""The rounding stage: its codes are the quantizers' own, and the same on any number of workers."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from raysearch.calibration import calibrate
from raysearch.cluster.pool import LocalPool
from raysearch.config.placement import PlacementConfig
from raysearch.config.rounding import RoundingConfig
from raysearch.errors import DataError
from raysearch.evaluation import Divergence, Replica, default_forward
from raysearch.placement import place_quantizers
from raysearch.quantizer import latent_weight, make_quantizer
from raysearch.records import QuantizerSpec
from raysearch.rounding import round_weights
from raysearch.rounding.round_weights import UNGUIDED
from raysearch.rounding.second_moments import Moments, observe_moments
from tests.support.moments import quadratic

WIDTHS = (2, 3, 4, 8)


class Net(nn.Module):
    """A convolution of every kind, an embedding that is tied to the head, and attention."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.conv = nn.Conv1d(8, 12, 3, padding=1)
        self.depthwise = nn.Conv1d(12, 12, 3, groups=12, padding=2, dilation=2)
        self.grouped = nn.Conv1d(12, 6, 1, groups=2)
        self.up = nn.ConvTranspose1d(6, 8, 2, stride=2, groups=2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        x = self.table(ids)
        y = self.up(self.grouped(self.depthwise(self.conv(x.mT).relu())).relu()).mT
        x = torch.cat([x, y], 1) + 0
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.q(x) * self.k(x).relu())


def make_ids(count=24, length=6):
    return torch.randint(0, 10, (count, length), generator=torch.Generator().manual_seed(3))


def make_problem(model=None, batches=None, **placement):
    torch.manual_seed(0)
    model = (model or Net()).eval()
    if batches is None:
        batches = list(make_ids().split(4))
    replica = Replica(model, default_forward, {"calibration": batches}, Divergence("mse"))
    settings = PlacementConfig(weight_bit_widths=WIDTHS, **placement)
    setup = place_quantizers(model, (batches[0][:2],), settings)
    ranges = calibrate(setup, LocalPool(replica), len(batches))
    return replica, setup, ranges


@pytest.fixture(scope="module")
def net():
    return make_problem()


def settings(**changes):
    return RoundingConfig(**{"block_size": 5, "unit_shards": 2, **changes})


def round_all(problem, pool=LocalPool, **changes):
    replica, setup, ranges = problem
    shards = len(replica.shards["calibration"])
    return round_weights(setup, ranges, pool(replica), shards, settings(**changes))


def error_of(replica, setup, name, delta):
    """tr(Δ H Δᵀ) per sample, by moments that are tested for themselves."""
    shards = len(replica.shards["calibration"])
    moments = Moments.from_value(observe_moments(replica, list(setup.of_kind("weight")), 0, shards))
    return float(quadratic(moments, name, delta.double())) / moments.num_samples


def test_every_weight_has_codes_at_every_width(net):
    _, setup, _ = net
    table = round_all(net)
    expected = {(name, bits) for name in setup.of_kind("weight") for bits in WIDTHS}
    assert {(name, scheme.num_bits) for name, scheme in table} == expected
    assert {weight.method for weight in table.weights.values()} == {"gptq"}
    assert "attention.in_proj_weight" in table.points()


@pytest.mark.parametrize("method", ["gptq", "nearest"])
def test_codes_are_what_the_quantizer_makes_of_the_latent_weight(net, method):
    replica, setup, _ = net
    table = round_all(net, method=method)
    for (name, scheme), rounded in table.weights.items():
        quantizer = make_quantizer(setup.points[name])
        quantizer.set_range(scheme.num_bits, rounded.range)
        weight = replica.model.get_parameter(name).detach()
        latent = latent_weight(weight, quantizer, rounded.codes)
        assert rounded.codes.shape == tuple(weight.shape)
        assert np.array_equal(quantizer.codes(latent).numpy(), rounded.codes)
        low, high = quantizer.levels
        assert low <= rounded.codes.min()
        assert rounded.codes.max() <= high
        with torch.no_grad():
            assert np.array_equal(quantizer(latent).numpy(), rounded.values())
        if method == "nearest":
            assert torch.equal(latent, weight)


def test_nearest_is_the_calibrated_quantizer_itself(net):
    replica, setup, ranges = net
    table = round_all(net, method="nearest")
    for (name, scheme), rounded in table.weights.items():
        quantizer = make_quantizer(setup.points[name])
        quantizer.set_range(scheme.num_bits, ranges[name, scheme.num_bits])
        with torch.no_grad():
            expected = quantizer(replica.model.get_parameter(name))
        assert np.array_equal(rounded.values(), expected.numpy())
        assert np.array_equal(rounded.scale, ranges[name, scheme.num_bits].scale)
        assert math.isnan(rounded.error)


@pytest.mark.slow
def test_errors_are_by_the_moments_and_never_above_those_of_nearest(net):
    replica, setup, _ = net
    table, nearest = round_all(net), round_all(net, method="nearest")
    gain = 0.0
    for (name, scheme), rounded in table.weights.items():
        if name == "table.weight":
            continue  # rows of a tied table count with the mean of their block
        weight = replica.model.get_parameter(name).detach()
        after = error_of(replica, setup, name, torch.from_numpy(rounded.values()) - weight)
        before = error_of(replica, setup, name, torch.from_numpy(nearest[name, scheme].values()) - weight)
        assert rounded.error == pytest.approx(after, rel=1e-4)
        assert rounded.error_nearest == pytest.approx(before, rel=1e-4)
        assert rounded.error <= rounded.error_nearest
        gain += math.log(rounded.error_nearest / rounded.error)
    assert gain / len(table) > math.log(1.5)


class Shuffled(LocalPool):
    """Units in any order, as workers finish them."""

    def __init__(self, replica, seed):
        super().__init__(replica)
        self._random = random.Random(seed)

    def run(self, function, units, shared=()):
        order = list(units)
        self._random.shuffle(order)
        answers = list(super().run(function, {key: units[key] for key in order}, shared))
        self._random.shuffle(answers)
        yield from answers


@pytest.mark.parametrize(("seed", "guided"), [(1, False), (2, False), (3, True)])
def test_units_in_any_order_give_the_same_bits(net, seed, guided):
    expected = round_all(net, guided=guided).digest()
    assert round_all(net, lambda replica: Shuffled(replica, seed), guided=guided).digest() == expected


def test_guided_rounding_is_seeded_and_leaves_less_by_its_own_measure(net):
    replica, setup, ranges = net
    table = round_all(net, guided=True)
    assert {weight.method for weight in table.weights.values()} == {"gptq"}
    assert not any(UNGUIDED in weight.notes for weight in table.weights.values())
    assert all(weight.error <= weight.error_nearest for weight in table.weights.values())
    assert table.digest() != round_all(net).digest()
    shards = len(replica.shards["calibration"])
    other = round_weights(setup, ranges, LocalPool(replica), shards, settings(guided=True), seed=1)
    assert other.digest() != table.digest()


def test_a_weight_that_no_gradient_reaches_is_rounded_by_plain_moments_and_says_so():
    class Aside(nn.Sequential):
        def forward(self, x):
            self[0](x)
            return self[1](x)

    problem = make_problem(Aside(nn.Linear(6, 5), nn.Linear(6, 4)), list(torch.randn(20, 6).split(5)))
    table, plain = round_all(problem, guided=True), round_all(problem)
    assert table["0.weight", 2].notes == (UNGUIDED,)
    assert np.array_equal(table["0.weight", 2].codes, plain["0.weight", 2].codes)
    assert table["1.weight", 2].notes == ()


def test_candidates_in_turn_give_the_same_bits(net, monkeypatch):
    expected = round_all(net).digest()
    monkeypatch.setattr("raysearch.rounding.gptq.CANDIDATE_BYTES", 1)
    assert round_all(net).digest() == expected


def test_the_model_and_the_generator_are_left_as_found(net):
    replica, _, _ = net
    state = {name: value.clone() for name, value in replica.model.state_dict().items()}
    rng = torch.get_rng_state()
    round_all(net)
    assert all(torch.equal(value, state[name]) for name, value in replica.model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("mode", ["symmetric", "asymmetric"])
def test_every_kind_of_grid_is_the_quantizers(granularity, mode):
    override = {"granularity": granularity, "mode": mode}
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    batches = list(torch.randn(20, 6, generator=torch.Generator().manual_seed(0)).split(5))
    problem = make_problem(model, batches, overrides={"0": override, "2": override})
    replica, setup, _ = problem
    table, nearest = round_all(problem), round_all(problem, method="nearest")
    for (name, scheme), rounded in table.weights.items():
        point = setup.points[name]
        assert point.grid_spec.mode == mode
        assert rounded.scale.shape == (point.num_scales,)
        quantizer = make_quantizer(point)
        quantizer.set_range(scheme.num_bits, rounded.range)
        latent = latent_weight(replica.model.get_parameter(name).detach(), quantizer, rounded.codes)
        with torch.no_grad():
            assert np.array_equal(quantizer(latent).numpy(), rounded.values())
        assert rounded.error <= rounded.error_nearest
        assert nearest[name, scheme].codes.dtype == rounded.codes.dtype


def test_a_logarithmic_scale_is_stored_as_the_quantizer_holds_it():
    model = nn.Sequential(nn.Linear(16, 64))
    replica, setup, ranges = make_problem(model, list(torch.randn(40, 16).split(10)))
    spec = QuantizerSpec("symmetric", signed=True, logarithm_scale=True)
    points = {name: replace(point, spec=spec) for name, point in setup.of_kind("weight").items()}
    setup = replace(setup, points={**setup.points, **points})
    for (name, scheme), rounded in round_all((replica, setup, ranges)).weights.items():
        quantizer = make_quantizer(setup.points[name])
        quantizer.set_range(scheme.num_bits, rounded.range)
        assert np.array_equal(quantizer.effective_scale().detach().numpy().reshape(-1), rounded.scale)


def test_a_layer_that_is_never_reached_is_nearest_and_says_so():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.skip = False

        def forward(self, x):
            return self.a(x) if self.skip else self.a(x) + self.b(x)

    model = Half()
    problem = make_problem(model, list(torch.randn(8, 4).split(4)), ignored_scopes=["re:.*input.*"])
    model.skip = True
    table, nearest = round_all(problem), round_all(problem, method="nearest")
    assert table["a.weight", 3].method == "gptq"
    assert table["b.weight", 3].method == "nearest"
    note = "no call of the calibration data reads it as a matrix, rounded to nearest"
    assert table["b.weight", 3].notes == (note,)
    assert np.array_equal(table["b.weight", 3].values(), nearest["b.weight", 3].values())


def test_fewer_vectors_than_inputs_raise_the_damping_and_say_so():
    problem = make_problem(nn.Sequential(nn.Linear(32, 4)), list(torch.randn(4, 32).split(2)))
    rounded = round_all(problem)["0.weight", 2]
    assert rounded.notes == (
        "fewer calibration vectors than inputs, damping raised (4 for 32 inputs, from 0.01 to 0.08)",
    )


def test_dead_inputs_are_named_and_round_to_nearest():
    x = torch.randn(20, 6)
    x[:, 2] = 0
    problem = make_problem(nn.Sequential(nn.Linear(6, 4)), list(x.split(5)))
    rounded = round_all(problem)["0.weight", 4]
    assert rounded.notes == ("inputs that are always 0, what reads them is rounded to nearest (1 of 6)",)
    weight = problem[0].model[0].weight.detach()[:, 2].numpy()
    steps = np.clip(np.round(weight / rounded.scale), -8, 7)
    # Their scale is the row's, which may have been fitted after they were rounded.
    assert np.abs(steps - rounded.codes[:, 2]).max() <= 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_input_that_is_not_finite_is_refused_by_name(value):
    x = torch.randn(8, 4)
    problem = make_problem(nn.Sequential(nn.Linear(4, 4)), list(x.split(4)), ignored_scopes=["re:.*input.*"])
    problem[0].shards["calibration"][1][0, 0] = value
    with pytest.raises(DataError, match=r"'0\.weight' reads takes NaN or infinity"):
        round_all(problem)


def test_an_all_zero_row_stays_zero():
    model = nn.Sequential(nn.Linear(6, 4))
    with torch.no_grad():
        model[0].weight[1] = 0
    table = round_all(make_problem(model, list(torch.randn(20, 6).split(5))))
    assert not table["0.weight", 2].values()[1].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_latent_weights_in_half_precision_keep_their_codes(net, dtype):
    replica, setup, _ = net
    for (name, scheme), rounded in round_all(net).weights.items():
        quantizer = make_quantizer(setup.points[name])
        quantizer.set_range(scheme.num_bits, rounded.range)
        latent = latent_weight(replica.model.get_parameter(name).detach().to(dtype), quantizer, rounded.codes)
        assert latent.dtype == dtype
        assert np.array_equal(quantizer.codes(latent).numpy(), rounded.codes)


class TiedOrNot(nn.Module):
    """A table, and a head that is tied to it or has the same weights."""

    def __init__(self, is_tied):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = nn.Parameter(self.table.weight.detach().clone())
        if is_tied:
            self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(0.5 * self.table(ids).tanh())


def test_each_row_of_a_tied_table_counts_how_often_it_is_looked_up():
    ids = torch.tensor([0] * 4 + [4] * 92).reshape(4, 24)[:, torch.randperm(24)]
    tied, apart = (make_problem(TiedOrNot(is_tied), [ids]) for is_tied in (True, False))
    rounded, head = round_all(tied), round_all(apart)
    replica, setup, _ = tied
    for bits in WIDTHS:
        weight = rounded["table.weight", bits]
        values, other = weight.values(), head["head.weight", bits].values()
        unread = [row for row in range(11) if row not in (0, 4)]
        assert np.array_equal(values[unread], other[unread]), "these rows are those of a head alone"
        delta = torch.from_numpy(values) - replica.model.get_parameter("table.weight").detach()
        assert weight.error == pytest.approx(error_of(replica, setup, "table.weight", delta), rel=1e-3)
    assert not np.array_equal(rounded["table.weight", 2].values(), head["head.weight", 2].values())
