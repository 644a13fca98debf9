"""Distributions and estimators against numpy; clipping against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raysearch.calibration.clipping import SquaredError, entropy_peak, mse_interval, mse_peak
from raysearch.calibration.distribution import EXACT_BITS, Distribution, count_values
from raysearch.calibration.grid import affine_grid, symmetric_scale
from raysearch.calibration.observer import ObservationPlan, Observer
from raysearch.calibration.statistics import Statistics, interval, peak

PERCENTILES = (1.0, 98.0)
LEVELS = {2: (0, 3), 3: (0, 7), 4: (0, 15), 8: (0, 255)}


def values(name, count=4000):
    generator = torch.Generator().manual_seed(5)
    normal = torch.randn(count, generator=generator)
    return {
        "normal": normal,
        "relu": normal.relu(),
        "heavy": normal / torch.rand(count, generator=generator),
        "shifted": normal + 2,
        "negative": -normal.abs(),
        "tiny": normal * 1e-20,
        "spike": torch.cat([normal * 0.01, torch.tensor([50.0])]),
    }[name]


NAMES = ["normal", "relu", "heavy", "shifted", "negative", "tiny", "spike"]


def look(x, axis=None, bits=EXACT_BITS, size=None):
    observer, parts = Observer(ObservationPlan(axis, bits, PERCENTILES)), []
    for part in x.split(size or len(x)):
        observer(part)
        parts.append(observer.collect())
    return Statistics.from_units(parts)


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_of_values_rounded_to_twelve_bits(name):
    x = values(name)
    found = count_values(x)
    assert found.total == len(x)
    assert (np.diff(found.values) > 0).all()
    ordered = np.sort(x.double().numpy())
    seen = np.repeat(found.values, found.counts)
    assert (np.abs(seen - ordered) <= np.abs(ordered) * 2.0**-12).all()
    # Rounding once more changes nothing.
    again = count_values(torch.from_numpy(seen).float())
    assert again.values.tolist() == found.values.tolist()


@pytest.mark.parametrize("bits", [12, EXACT_BITS])
@pytest.mark.parametrize("name", NAMES)
def test_merged_counts_equal_the_single_pass_in_any_order(name, bits):
    x = values(name)
    whole = count_values(x, bits)
    for sizes in ([1000] * 4 + [len(x) - 4000], [1, 17, 3000, len(x) - 3018]):
        parts = [count_values(part, bits) for part in x.split([s for s in sizes if s])]
        for order in (parts, parts[::-1]):
            merged = Distribution.merge(order)
            assert merged.values.tobytes() == whole.values.tobytes()
            assert merged.counts.tobytes() == whole.counts.tobytes()


def test_zeros_of_both_signs_are_one_value():
    for bits in (12, EXACT_BITS):
        found = count_values(torch.tensor([0.0, -0.0, 1.0, -1.0]), bits)
        assert found.values.tolist() == [-1, 0, 1]
        assert found.counts.tolist() == [1, 2, 1]


@pytest.mark.parametrize("percent", [0, 0.1, 10, 33.3, 50, 99.9, 100])
@pytest.mark.parametrize("name", NAMES)
def test_percentiles_are_numpys(name, percent):
    x = values(name)
    expected = np.percentile(x.double().numpy(), percent)
    assert count_values(x, EXACT_BITS).percentile(percent) == pytest.approx(expected, rel=1e-12, abs=1e-30)
    assert count_values(x).percentile(percent) == pytest.approx(expected, rel=2e-3, abs=1e-30)


def test_magnitudes_and_medians():
    found = count_values(torch.tensor([-3.0, -1.0, 1.0, 2.0, 3.0]), EXACT_BITS)
    assert found.magnitudes().values.tolist() == [1, 2, 3]
    assert found.magnitudes().counts.tolist() == [2, 1, 2]
    assert found.median() == 1
    assert found.magnitudes().median() == 2


def expected_interval(x, name):
    rows = x.double().numpy()
    if name == "min_max":
        return rows.min(), rows.max()
    if name in ("mean_min_max", "mixed_min_max"):
        return rows.min(1).mean(), rows.max(1).mean()
    if name == "percentile":
        return tuple(np.percentile(rows, PERCENTILES))
    if name == "mean_percentile":
        return tuple(np.percentile(rows, PERCENTILES, axis=1).mean(1))
    middle = np.median(rows[rows != 0])
    spread = 3 * 1.482623 * np.median(np.abs(rows - middle))
    return max(middle - spread, rows.min()), min(middle + spread, rows.max())


SIX = ["min_max", "mean_min_max", "mixed_min_max", "threesigma", "percentile", "mean_percentile"]


@pytest.mark.parametrize("name", ["normal", "relu", "heavy", "shifted", "negative"])
@pytest.mark.parametrize("estimator", SIX)
def test_intervals_are_numpys_and_do_not_depend_on_the_batches(estimator, name):
    x = values(name).reshape(40, 100)
    expected = expected_interval(x, estimator)
    found = [interval(look(x, size=n), estimator, PERCENTILES, per_channel=False) for n in (40, 7, 1)]
    assert np.concatenate(found[0]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert all(np.concatenate(f).tobytes() == np.concatenate(found[0]).tobytes() for f in found)
    low, high = found[0]
    assert float(low[0]) >= float(x.min()) - 1e-9
    assert float(high[0]) <= float(x.max()) + 1e-9


@pytest.mark.parametrize("estimator", SIX)
def test_channels_do_not_see_each_other(estimator):
    x = values("heavy").reshape(20, 4, 50)
    low, high = interval(look(x, 1), estimator, PERCENTILES, per_channel=True)
    for c in range(4):
        # Per channel `mixed_min_max` takes the extremes, so it is compared as such.
        alone = interval(look(x[:, c : c + 1], 1), estimator, PERCENTILES, per_channel=True)
        assert (low[c], high[c]) == pytest.approx((alone[0][0], alone[1][0]), rel=1e-12)
    if estimator == "mixed_min_max":
        assert low.tolist() == x.amin((0, 2)).double().tolist()


def test_symmetric_magnitudes_follow_one_rule_for_both_signs():
    x = values("heavy").reshape(40, 100)
    for estimator in SIX:
        found, mirrored = (
            peak(look(sign * x), estimator, (2.0, 98.0), per_channel=False, signed=True) for sign in (1, -1)
        )
        if "percentile" not in estimator:
            assert found == pytest.approx(mirrored)
    mean = peak(look(x), "mixed_min_max", PERCENTILES, per_channel=False, signed=True)
    assert mean == pytest.approx([float(x.abs().amax(1).double().mean())])
    unsigned = peak(look(x), "min_max", PERCENTILES, per_channel=False, signed=False)
    assert unsigned == [float(x.max())]


def error_of(x, scale, zero, levels):
    x = x.double().numpy()
    codes = np.clip(np.rint(x / scale) + zero, *levels)
    return (((codes - zero) * scale - x) ** 2).sum()


@pytest.mark.parametrize("bits", LEVELS)
@pytest.mark.parametrize("name", NAMES)
def test_squared_errors_are_those_of_the_grid(name, bits):
    x = values(name)
    error = SquaredError(count_values(x, EXACT_BITS))
    for shrink in (1.0, 0.3):
        grid = affine_grid(float(x.min()) * shrink, float(x.max()) * shrink, LEVELS[bits])
        energy = float((x.double() ** 2).sum())
        expected = error_of(x, *grid, LEVELS[bits])
        assert error(*grid, LEVELS[bits]) == pytest.approx(expected, rel=1e-6, abs=1e-12 * energy)


@pytest.mark.parametrize("bits", LEVELS)
@pytest.mark.parametrize("name", NAMES)
def test_the_mse_interval_beats_min_max_and_is_near_the_best(name, bits):
    x, levels = values(name), LEVELS[bits]
    low, high = float(x.min()), float(x.max())
    found = mse_interval(count_values(x), low, high, levels)
    error = error_of(x, *affine_grid(*found, levels), levels)
    base = error_of(x, *affine_grid(low, high, levels), levels)
    assert error <= base * 1.001
    exact = SquaredError(count_values(x, EXACT_BITS))
    lows = np.linspace(0, 1, 61) * min(low, 0) if low < 0 else [0.0]
    highs = np.linspace(0, 1, 61) * max(high, 0) if high > 0 else [0.0]
    best = min(exact(*affine_grid(a, b, levels), levels) for a in lows for b in highs)
    assert error <= best * 1.03


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", ["normal", "heavy", "spike", "negative"])
def test_the_mse_peak_is_near_the_best(name, bits):
    x, levels = values(name), (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    top = float(x.abs().max())
    exact = SquaredError(count_values(x, EXACT_BITS))
    scale = symmetric_scale(mse_peak(count_values(x), top, levels), levels)
    best = min(exact(symmetric_scale(top * c, levels), 0, levels) for c in np.linspace(0.001, 1.1, 1000))
    assert exact(scale, 0, levels) <= best * 1.03
    assert exact(scale, 0, levels) <= exact(symmetric_scale(top, levels), 0, levels) * 1.001


def test_entropy_clips_a_tail_and_keeps_what_is_even():
    tail = torch.cat([values("normal", 100_000), torch.tensor([40.0])])
    assert 1.5 < entropy_peak(count_values(tail), 8) < 8
    assert entropy_peak(count_values(tail), 8) <= entropy_peak(count_values(tail), 128)
    even = torch.linspace(-1, 1, 200_001)
    assert entropy_peak(count_values(even), 8) > 0.95
    assert entropy_peak(count_values(torch.zeros(4)), 8) == 0
    # Exact zeros carry no error on any grid, so they have no vote.
    zeros = torch.cat([tail, torch.zeros(10**6)])
    assert entropy_peak(count_values(zeros), 8) == entropy_peak(count_values(tail), 8)
