"""Rows with several scales, and zero points: places, fits and searches against dense brute force."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from raysearch.calibration import calibrate
from raysearch.cluster.pool import LocalPool
from raysearch.config.placement import PlacementConfig
from raysearch.config.rounding import RoundingConfig
from raysearch.evaluation import Divergence, Replica, default_forward
from raysearch.placement import place_quantizers
from raysearch.quantizer import latent_weight, make_quantizer
from raysearch.records import Granularity, QuantizerSpec
from raysearch.rounding import round_weights
from raysearch.rounding.candidates import Steps, Weight, best_ends
from raysearch.rounding.factors import factorise
from raysearch.rounding.joint_fit import jointly_fitted_scale
from raysearch.rounding.layout import Layout
from raysearch.rounding.problem import Block, Inputs
from raysearch.rounding.sharing import Sharing
from tests.support.shuffled_pool import ShuffledPool

WIDTHS = (2, 3, 8)


def random_weight(granularity, shape=(3, 6), layout=Layout(), seed=0, *, dense=True):  # noqa: B008
    generator = torch.Generator().manual_seed(seed)
    rows_grd = layout.rows(torch.randn(shape, generator=generator, dtype=torch.float64))
    columns = rows_grd.shape[2]
    x = torch.randn(len(rows_grd), 40, columns, generator=generator, dtype=torch.float64).relu()
    factor = factorise(x.transpose(1, 2) @ x, 0.01) if dense else None
    inputs = Inputs(layout, (Block(0, rows_grd.shape[1], factor),), torch.ones(rows_grd.shape[:2]))
    places = layout.scale_places(shape, granularity)
    return Weight(rows_grd, inputs, Sharing(places, granularity.num_scales(shape), inputs.row_weights))


@pytest.mark.parametrize(
    ("layout", "shape", "granularity"),
    [
        (Layout(), (4, 6), Granularity.per_group(3)),
        (Layout(), (4, 7), Granularity.per_group(3)),
        (Layout(), (4, 6, 2, 3), Granularity.per_group(2)),
        (Layout(groups=2), (4, 6, 3), Granularity.per_group(2)),
        (Layout(is_transposed=True), (6, 4), Granularity.per_group(2, axis=1, group_axis=0)),
        (Layout(is_transposed=True), (6, 4, 2, 2), Granularity.per_group(3, axis=1, group_axis=0)),
        (Layout(is_transposed=True, groups=2), (8, 3, 2), Granularity.per_group(2, axis=1, group_axis=0)),
    ],
)
def test_every_element_has_the_scale_that_the_quantizer_gives_it(layout, shape, granularity):
    places = layout.scale_places(shape, granularity)
    spread = torch.arange(granularity.num_scales(shape)).reshape(granularity.scale_shape(shape))
    for axis, (size, count) in enumerate(zip(shape, spread.shape, strict=True)):
        if axis == granularity.group_axis:
            groups = torch.arange(size) // granularity.group_size
            spread = spread.index_select(axis, groups)
        elif count == 1:
            spread = spread.repeat_interleave(size, axis)
    assert torch.equal(places.ids_grk[..., places.group_of_d], layout.rows(spread))
    sharing = Sharing(places, int(spread.max()) + 1, torch.ones(places.ids_grk.shape[:2]))
    values = torch.arange(sharing.num_scales, dtype=torch.float64)
    assert torch.equal(sharing.of_columns(values).long(), layout.rows(spread))


def test_a_group_of_a_whole_row_is_a_scale_a_row():
    places = Layout().scale_places((4, 6), Granularity.per_group(6))
    assert places.group_of_d is None
    assert places.ids_grk.flatten().tolist() == [0, 1, 2, 3]


def test_scales_that_several_rows_have_in_turn_have_no_place():
    assert Layout().scale_places((4, 6), Granularity.per_channel(1)) is None
    straddling = Granularity.per_group(3, axis=1, group_axis=0)
    assert Layout(is_transposed=True, groups=2).scale_places((8, 3), straddling) is None


@pytest.mark.parametrize("dense", [True, False])
def test_jointly_fitted_scales_solve_the_least_squares_problem(dense, monkeypatch):
    weight = random_weight(Granularity.per_group(2), shape=(5, 7), dense=dense)
    rows, sharing = weight.rows_grd, weight.sharing
    start = torch.full((sharing.num_scales,), 0.7, dtype=torch.float64)
    codes = torch.clamp(torch.round(rows / sharing.of_columns(start)), -2, 1)
    codes[0, 0, :2] = 0
    fitted, before, after = jointly_fitted_scale(codes, rows, weight.inputs, sharing, start)
    moments = weight.inputs.blocks[0].factor.moments_gdd[0] if dense else torch.eye(7, dtype=torch.float64)
    root = torch.linalg.cholesky(moments).T
    for row in range(5):
        ids = sharing.places.ids_grk[0, row]
        design = torch.stack([codes[0, row] * (sharing.places.group_of_d == k) for k in range(4)])
        known = design.square().sum(1) > 0
        exact = torch.linalg.lstsq(root @ design[known].T, root @ rows[0, row]).solution
        if (exact > 0).all():
            assert torch.allclose(fitted[ids][known], exact, rtol=1e-4)
        assert torch.equal(fitted[ids][~known], start[ids][~known].float().double())
        for scale, error in ((start, before), (fitted, after)):
            missed = root @ (scale[ids] @ design - rows[0, row])
            assert float(error[row]) == pytest.approx(float(missed.square().sum()), rel=1e-9)
        assert after[row] <= before[row]
    monkeypatch.setattr("raysearch.rounding.joint_fit.FIT_BYTES", 1)
    assert torch.allclose(jointly_fitted_scale(codes, rows, weight.inputs, sharing, start)[0], fitted)


@pytest.mark.parametrize("granularity", [Granularity.per_channel(0), Granularity.per_group(3)])
@pytest.mark.parametrize("levels", [(0, 3), (0, 15)])
def test_both_ends_are_as_good_as_a_fine_raster_of_them(granularity, levels):
    weight = random_weight(granularity)
    low, high = weight.sharing.extremes(weight.rows_grd)
    for error in (weight.weight_error, weight.input_error):
        steps = best_ends(weight, levels, error)
        assert torch.equal(steps.zero_s, steps.zero_s.round())
        assert steps.zero_s.min() >= levels[0]
        assert steps.zero_s.max() <= levels[1]
        reached = error(weight.misses(steps, levels))
        least = torch.full_like(reached, torch.inf)
        raster = np.arange(20, 0, -1) / 20
        for a, b in itertools.product(raster, raster):
            scale = (high * b - low * a) / levels[1]
            tried = Steps(scale, torch.round(-low * a / scale).clamp(*levels))
            least = torch.minimum(least, error(weight.misses(tried, levels)))
        assert float((reached / least).log().mean().exp()) < 1.15


def test_the_error_of_a_scale_alone_is_by_its_own_columns():
    weight = random_weight(Granularity.per_group(2))
    missed = torch.randn(weight.rows_grd.shape, dtype=torch.float64)
    error = weight.input_error(missed)
    moments = weight.inputs.blocks[0].factor.moments_gdd[0]
    for row, group in itertools.product(range(3), range(3)):
        own = slice(2 * group, 2 * group + 2)
        part = missed[0, row, own]
        expected = float(part @ moments[own, own] @ part)
        assert float(error[3 * row + group]) == pytest.approx(expected, rel=1e-12)


class Net(nn.Module):
    """A layer of every kind that groups differ for."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 8, 1, groups=2)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)
        self.head = nn.Linear(8, 6)

    def forward(self, x):
        y = self.up(self.grouped(self.conv(x).relu()).relu()).relu()
        return self.head(y.flatten(2).transpose(1, 2).reshape(len(x), -1, 8))


def make_problem(mode="symmetric", group_size=None, model=None, batches=None):
    """A net whose weights have groups of so many inputs; None: of all of a row."""
    torch.manual_seed(0)
    model = model or Net()
    if batches is None:
        x = torch.randn(12, 4, 4, 4, generator=torch.Generator().manual_seed(3))
        batches = list(x.split(3))
    replica = Replica(model.eval(), default_forward, {"calibration": batches}, Divergence("mse"))
    settings = PlacementConfig(weight_bit_widths=WIDTHS, ignored_scopes=["*input*"])
    setup = place_quantizers(model, (batches[0][:2],), settings)
    points = {}
    for name, point in setup.of_kind("weight").items():
        axis = point.granularity.axis
        row = point.shape[1 - axis] // (2 if name.startswith("up") else 1)
        granularity = Granularity.per_group(min(group_size or row, row), axis, 1 - axis)
        spec = None if mode == "symmetric" else QuantizerSpec(mode)
        points[name] = replace(point, granularity=granularity, spec=spec)
    setup = replace(setup, points={**setup.points, **points})
    ranges = calibrate(setup, LocalPool(replica), len(batches))
    return replica, setup, ranges


def round_all(problem, pool=LocalPool, **changes):
    replica, setup, ranges = problem
    settings = RoundingConfig(block_size=5, unit_shards=2, **changes)
    return round_weights(setup, ranges, pool(replica), len(replica.shards["calibration"]), settings)


@pytest.fixture(scope="module", params=["symmetric", "asymmetric", "minimum"])
def grouped(request):
    return make_problem(request.param, group_size=2)


def test_codes_of_groups_are_the_quantizers_own_and_miss_less(grouped):
    replica, setup, _ = grouped
    table, nearest = round_all(grouped), round_all(grouped, method="nearest")
    gains = []
    for (name, scheme), rounded in table.weights.items():
        point = setup.points[name]
        assert rounded.method == "gptq"
        assert rounded.scale.size == point.num_scales
        quantizer = make_quantizer(point)
        quantizer.set_range(scheme.num_bits, rounded.range)
        latent = latent_weight(replica.model.get_parameter(name).detach(), quantizer, rounded.codes)
        with torch.no_grad():
            assert np.array_equal(quantizer(latent).numpy(), rounded.values())
        assert np.array_equal(nearest[name, scheme].values(), nearest_values(grouped, name, scheme))
        assert rounded.error <= rounded.error_nearest
        gains.append(rounded.error_nearest / rounded.error)
    assert np.log(gains).mean() > np.log(1.3)


def nearest_values(problem, name, scheme):
    replica, setup, ranges = problem
    quantizer = make_quantizer(setup.points[name])
    quantizer.set_range(scheme.num_bits, ranges[name, scheme.num_bits])
    with torch.no_grad():
        return quantizer(replica.model.get_parameter(name)).numpy()


@pytest.mark.slow
def test_units_in_any_order_and_candidates_in_turn_give_the_same_bits(grouped, monkeypatch):
    expected = round_all(grouped).digest()
    assert round_all(grouped, lambda replica: ShuffledPool(LocalPool(replica), 1)).digest() == expected
    monkeypatch.setattr("raysearch.rounding.gptq.CANDIDATE_BYTES", 1)
    assert round_all(grouped).digest() == expected


def test_a_group_of_a_whole_row_rounds_as_a_scale_a_row():
    replica, setup, ranges = make_problem(group_size=None)
    points = {
        name: replace(point, granularity=Granularity.per_channel(point.granularity.axis))
        for name, point in setup.of_kind("weight").items()
        if name != "up.weight"  # whose groups have scales of their own, where channels share theirs
    }
    plain = replace(setup, points={**setup.points, **points})
    table, other = round_all((replica, setup, ranges)), round_all((replica, plain, ranges))
    for name in points:
        for scheme in table.schemes(name):
            assert np.array_equal(table[name, scheme].codes, other[name, scheme].codes)
            assert np.array_equal(table[name, scheme].scale, other[name, scheme].scale)


def test_smaller_groups_miss_less():
    errors = []
    for group_size in (None, 4, 2):
        table = round_all(make_problem(group_size=group_size))
        errors.append(sum(table[name, 3].error for name in ("conv.weight", "head.weight")))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("group_size", [8, 4])
def test_weights_of_one_sign_miss_less_with_a_zero_point(group_size):
    errors = {}
    for mode in ("symmetric", "asymmetric"):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(8, 6))
        with torch.no_grad():
            model[0].weight.abs_().add_(0.1)
        batches = list(torch.randn(40, 8, generator=torch.Generator().manual_seed(2)).split(10))
        table = round_all(make_problem(mode, group_size, model, batches))
        errors[mode] = [table["0.weight", bits].error for bits in WIDTHS]
    for symmetric, asymmetric in zip(errors["symmetric"], errors["asymmetric"], strict=True):
        assert asymmetric < symmetric / 2
