"""Ranges on the quantizer's own grid, choices per scope, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from raysearch.calibration import calibrate_model, choose_rules
from raysearch.calibration.distribution import EXACT_BITS
from raysearch.calibration.observer import ObservationPlan, Observer
from raysearch.calibration.ranges import Observed, Rule, find_range, warn_of_clipping, warn_of_zeros
from raysearch.calibration.statistics import Statistics
from raysearch.config import CalibrationConfig, PlacementConfig
from raysearch.errors import ConfigError, DataError, PlacementError
from raysearch.placement import place_quantizers
from raysearch.quantizer import make_quantizer, point_levels
from raysearch.records import Granularity, QuantizationPoint, QuantizerSetup, QuantizerSpec, Site

EVERY = (
    "mse", "entropy", "min_max", "mean_min_max", "mixed_min_max", "threesigma", "percentile",
    "mean_percentile",
)  # fmt: skip


def point(spec, axis=None, kind="activation", shape=(4, 50)):
    return QuantizationPoint(
        "layer.input", kind, (Site("layer", "input"),), shape, Granularity(axis), spec=spec
    )


def look(x, axis=None):
    observer = Observer(ObservationPlan(axis, EXACT_BITS, (0.1, 99.9)))
    observer(x)
    found = Statistics.from_units([observer.collect()])
    return Observed((found,), found)


def data(count=30):
    return torch.randn(count, 4, 50, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("estimator", EVERY)
@pytest.mark.parametrize("reference", [False, True])
def test_every_estimator_fits_every_grid(estimator, bits, axis, reference):
    rule = Rule(estimator, reference=reference)
    for mode in ("symmetric", "asymmetric"):
        for sign in (1, -1, 0):
            x = data() if sign == 0 else sign * data().abs()
            p = point(QuantizerSpec(mode), axis)
            found = find_range(p, look(x, None if axis is None else 1), rule, bits)
            assert found.scale.shape == found.zero_point.shape == (1 if axis is None else 4,)
            low, high = point_levels(p, bits, signed=found.signed)
            assert ((found.zero_point >= low) & (found.zero_point <= high)).all()
            if mode == "symmetric" and not reference:
                assert found.signed == (sign != 1)
            if mode == "asymmetric":
                assert not found.signed
            # The grid is about as wide as the data, never wider than rounding and the 10 % of mse explain.
            assert (found.scale * (high - low) <= 2.3 * 2 * x.abs().max().item() * (4 / 3)).all()


@pytest.mark.parametrize(("narrow", "half"), [(True, False), (False, True)])
@pytest.mark.parametrize("signed", [None, True, False])
def test_min_max_puts_the_highest_code_on_the_magnitude(narrow, half, signed):
    spec = QuantizerSpec("symmetric", signed, narrow, half)
    x = data().abs()
    for bits in (4, 8):
        found = find_range(point(spec), look(x), Rule("min_max"), bits)
        _, high = point_levels(point(spec), bits, signed=bool(signed))
        assert found.signed == bool(signed)
        assert found.scale * high == pytest.approx([float(x.max())])


def test_an_unsigned_quantizer_of_signed_data_is_told():
    p = point(QuantizerSpec("symmetric", signed=False))
    seen = look(data())
    with pytest.warns(UserWarning, match=r"'layer\.input' is unsigned, but its tensor goes down to"):
        warn_of_clipping(p, seen)
    found = find_range(p, seen, Rule("min_max"), 8)
    assert not found.signed
    assert found.scale * 255 == pytest.approx([float(data().max())])
    warn_of_clipping(point(QuantizerSpec("symmetric")), seen)


def test_a_dead_channel_takes_the_widest_interval():
    x = data().abs()
    x[:, 2] = 0
    for mode in ("symmetric", "asymmetric"):
        found = find_range(point(QuantizerSpec(mode), 0), look(x, 1), Rule("min_max"), 8)
        assert found.scale[2] == found.scale.max()


@pytest.mark.parametrize("mode", ["symmetric", "asymmetric"])
def test_zero_width_is_an_error_that_names_the_quantizer(mode):
    rare = 0 * data()
    rare.flatten()[0] = 1.0
    rule = Rule("percentile", (5.0, 95.0))
    with pytest.raises(DataError, match=r"'layer\.input' has zero width"):
        find_range(point(QuantizerSpec(mode)), look(rare), rule, 8)


RULES = (Rule("mse"), Rule("entropy"), Rule("min_max"), Rule("min_max", reference=True))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", ["symmetric", "asymmetric"])
def test_an_activation_that_is_exactly_zero_has_a_grid_of_its_own(mode, rule):
    p = point(QuantizerSpec(mode))
    seen = look(0 * data())
    found = find_range(p, seen, rule, 8)
    assert found.scale > 0
    quantizer = make_quantizer(p)
    quantizer.set_range(8, found)
    assert not quantizer(0 * data()).any()
    with pytest.warns(UserWarning, match=r"'layer\.input' is exactly 0 on the calibration data"):
        warn_of_zeros(p, seen)


def test_channels_that_do_not_fit_are_named():
    seen = look(data(), 1)
    with pytest.raises(DataError, match=r"'layer\.input' has 4 channels where its quantizer holds 3"):
        Observed.check(point(QuantizerSpec(), 0, shape=(3, 50)), seen.batches, seen.merged)


def model_and_setup():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    return model, place_quantizers(model, (torch.zeros(2, 6),), PlacementConfig(weight_bit_widths=(3, 8)))


def test_the_last_override_that_fits_wins():
    _, setup = model_and_setup()
    rules = choose_rules(
        setup,
        CalibrationConfig(
            weights="mse",
            activations="mse",
            overrides={"*.input": "entropy", r"re:^2\.": "min_max", "0.weight": "percentile"},
        ),
    )
    assert {name: rule.estimator for name, rule in rules.items()} == {
        "0.weight": "percentile", "0.input": "entropy", "2.weight": "min_max", "2.input": "min_max",
    }  # fmt: skip


def test_wrong_choices_are_named():
    _, setup = model_and_setup()
    with pytest.raises(PlacementError, match=r"calibration\.overrides names '0\.inptu'.*0\.input"):
        choose_rules(setup, CalibrationConfig(overrides={"0.inptu": "mse"}))
    with pytest.raises(ConfigError, match=r"estimator 'best' of '0\.input'"):
        choose_rules(setup, CalibrationConfig().model_copy(update={"overrides": {"0.input": "best"}}))
    with pytest.raises(ConfigError, match=r"calibration\.percentiles"):
        choose_rules(setup, CalibrationConfig(percentiles=(99, 1)))


@pytest.mark.parametrize("estimator", EVERY)
def test_shards_merge_into_the_single_pass_for_every_estimator(estimator):
    model, setup = model_and_setup()
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
    tables = [
        calibrate_model(
            model, setup, [x], CalibrationConfig(shard_size=n, weights=estimator, activations=estimator)
        )
        for n in (40, 16, 1)
    ]
    for key in tables[0].ranges:
        if key[0] == "0.input" or key[0].endswith("weight"):
            assert len({table[key].scale.tobytes() for table in tables}) == 1
            assert len({table[key].zero_point.tobytes() for table in tables}) == 1


def test_the_sample_count_is_exact_and_the_model_stays_in_train_mode():
    model, setup = model_and_setup()
    model.train()
    x = torch.ones(10, 6)
    x[7:] = 5
    found = calibrate_model(
        model, setup, [x], CalibrationConfig(num_samples=7, shard_size=3, activations="min_max")
    )
    assert found["0.input", 8].scale * 255 == pytest.approx([1.0])
    assert model.training
    assert not hasattr(model[0], "input_quantizer")


@pytest.mark.parametrize("mode", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("estimator", EVERY)
def test_weights_take_every_estimator_on_every_grid(estimator, mode):
    model, setup = model_and_setup()
    points = dict(setup.points)
    old = points["0.weight"]
    for axis in (None, 0, 1):
        points["0.weight"] = QuantizationPoint(
            old.id,
            "weight",
            old.sites,
            old.shape,
            Granularity(axis),
            old.macs,
            old.input_point,
            QuantizerSpec(mode),
        )
        other = QuantizerSetup(points, setup.groups)
        found = calibrate_model(model, other, [torch.randn(8, 6)], CalibrationConfig(weights=estimator))
        value = found["0.weight", 8]
        assert value.scale.shape == {None: (1,), 0: (5,), 1: (6,)}[axis]
        assert value.signed == (mode == "symmetric")
        if estimator not in ("mse", "min_max"):
            continue
        weight = model[0].weight.detach().double().numpy()
        shape = {None: (1, 1), 0: (5, 1), 1: (1, 6)}[axis]
        scale, zero = (v.astype(np.float64).reshape(shape) for v in (value.scale, value.zero_point))
        low, high = point_levels(points["0.weight"], 8, signed=value.signed)
        codes = np.clip(np.rint(weight / scale) + zero, low, high)
        assert (np.abs((codes - zero) * scale - weight) <= 2 * scale).all()
