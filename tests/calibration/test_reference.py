"""The reference's range initialisation: its golden values, its definitions, and where ours differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from raysearch.calibration.calibrate import calibrate_model
from raysearch.calibration.distribution import EXACT_BITS
from raysearch.calibration.observer import ObservationPlan, Observer
from raysearch.calibration.ranges import Observed, Rule, find_range
from raysearch.calibration.reference import (
    reference_affine,
    reference_interval,
    reference_scale,
)
from raysearch.calibration.statistics import Statistics
from raysearch.config import CalibrationConfig, PlacementConfig
from raysearch.placement import place_quantizers
from raysearch.quantizer import asymmetric_from_min_max, tune_range
from raysearch.records import Granularity, QuantizationPoint, QuantizerSpec, Site

SAMPLES = torch.tensor(
    [
        [[-1, 0, 2], [0.5, 0, 3]],
        [[-0.5, 0, 1], [0, 1, 1.5]],
        [[-4, 0, 0.25], [0, 0.75, 8]],
        [[-0.25, 0, 0.5], [0, 0.125, 1]],
    ]
)
GOLDENS = {
    "mixed_min_max": ((-1.4375, 4.8125), 4, (4, 8)),
    "min_max": ((-4, 12), 8, (4, 8)),
    "mean_min_max": ((-2.5, 8), 5.5, (3, 5.5)),
    "threesigma": ((-2.154918, 5.559836), 3.404918, (1.667951, 5.169877)),
    "percentile": ((-0.425, 2.275), 1.85, (0.95, 2.85)),
    "mean_percentile": ((-0.3375, 1.8), 1.4625, (1.4375, 3.375)),
}
PERCENTILES = (10.0, 90.0)


def batches(size, axis):
    found = []
    for part in SAMPLES.split(size):
        observer = Observer(ObservationPlan(axis, EXACT_BITS, PERCENTILES))
        observer(part)
        found.append(Statistics.from_units([observer.collect()]))
    return found


def seen(size, axis):
    parts = []
    for part in SAMPLES.split(size):
        observer = Observer(ObservationPlan(axis, EXACT_BITS, PERCENTILES))
        observer(part)
        parts.append(observer.collect())
    return Observed(tuple(Statistics.from_units([part]) for part in parts), Statistics.from_units(parts))


def point(mode, axis=None, **options):
    site = Site("x", "input")
    spec = QuantizerSpec(mode, **options)
    return QuantizationPoint("x.input", "activation", (site,), (2, 3), Granularity(axis), spec=spec)


@pytest.mark.parametrize("name", list(GOLDENS))
def test_goldens_r1_to_r6(name):
    span, scale, channels = GOLDENS[name]
    low, high = reference_interval(batches(2, None), name, PERCENTILES, symmetric=False, use_means=True)
    both = asymmetric_from_min_max(torch.from_numpy(low), torch.from_numpy(high))
    assert torch.cat(both).tolist() == pytest.approx(span, abs=1e-6)
    low, high = reference_interval(batches(2, None), name, PERCENTILES, symmetric=True, use_means=True)
    assert reference_scale(low, high)[0] == pytest.approx([scale], abs=1e-6)
    low, high = reference_interval(batches(2, 1), name, PERCENTILES, symmetric=True, use_means=False)
    found, signed = reference_scale(low, high)
    assert found == pytest.approx(channels, abs=1e-6)
    assert signed


@pytest.mark.parametrize("name", list(GOLDENS))
def test_parity_ranges_are_the_goldens(name):
    span, scale, channels = GOLDENS[name]
    rule = Rule(name, PERCENTILES, reference=True)
    found = find_range(point("symmetric"), seen(2, None), rule, 4)
    assert found.scale * 7 == pytest.approx([scale], rel=1e-6)
    found = find_range(point("symmetric", 0), seen(2, 1), rule, 4)
    assert found.scale * 7 == pytest.approx(channels, rel=1e-6)
    assert found.signed
    found = find_range(point("asymmetric"), seen(2, None), rule, 8)
    low, width = tune_range(*torch.tensor(span, dtype=torch.float64), 256)
    assert found.scale * 255 == pytest.approx([float(width)], rel=1e-6)
    assert -found.zero_point * found.scale == pytest.approx([float(low)], rel=1e-5)


@pytest.mark.parametrize(
    ("low", "high", "scale", "signed", "span"),
    [
        (-0.5, 0.7, 0.7, True, (-0.5, 1.2)),
        (0, 2, 2, False, (0, 2)),
        (-0.02, 0.03, 0.1, True, (-0.02, 0.05)),
        (-3, -1, 3, True, (-3, 2)),
        (-0.0001, 5, 5, True, (-0.0001, 5.0001)),
    ],
)
def test_goldens_g11_to_g15(low, high, scale, signed, span):
    low, high = np.array([low], float), np.array([high], float)
    assert reference_scale(low, high) == (pytest.approx([scale]), signed)
    both = asymmetric_from_min_max(torch.tensor(low), torch.tensor(high))
    assert torch.cat(both).tolist() == pytest.approx(span, abs=1e-6)
    tuned, width = tune_range(*both, 256)
    calibrated = reference_affine(low, high, (0, 255))
    assert width.numpy() / 255 == pytest.approx(calibrated.scale, rel=1e-6)
    assert torch.round(-tuned / (width / 255)).tolist() == calibrated.zero_point.tolist()


def test_a_narrow_channel_gets_a_share_of_the_widest():
    low, width = asymmetric_from_min_max(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.001]))
    assert width.tolist() == pytest.approx([1.0, 0.01])
    assert low.tolist() == pytest.approx([0.0, -0.0045])
    found = reference_affine(np.array([-1.0, 0.0]), np.array([1.0, 2.0]), (0, 255))
    assert found.zero_point.tolist() == [128, 0]


def test_a_forced_sign_wins_over_the_data():
    assert reference_scale(np.array([-3.0]), np.array([1.0]), False) == (np.array([3.0]), False)


@pytest.mark.parametrize("name", ["mean_min_max", "mean_percentile"])
def test_means_over_batches_depend_on_the_batch_size_and_ours_do_not(name):
    reference = [
        find_range(point("symmetric"), seen(n, None), Rule(name, PERCENTILES, True), 8) for n in (1, 2)
    ]
    assert reference[0].scale != reference[1].scale
    ours = [find_range(point("symmetric"), seen(n, None), Rule(name, PERCENTILES), 8) for n in (1, 2, 3, 4)]
    assert len({value.scale.tobytes() for value in ours}) == 1


def test_mixed_min_max_is_two_sided():
    # The reference covers the least value of all samples but only the mean of the largest ones.
    reference = find_range(point("symmetric"), seen(2, None), Rule("mixed_min_max", reference=True), 8)
    ours = find_range(point("symmetric"), seen(2, None), Rule("mixed_min_max"), 8)
    assert reference.scale * 127 == pytest.approx([4])
    assert ours.scale * 127 == pytest.approx([(3 + 1.5 + 8 + 1) / 4])


def test_threesigma_keeps_the_sign_of_the_data():
    x = torch.tensor([[0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 9.0]])
    observer = Observer(ObservationPlan(None, EXACT_BITS))
    observer(x)
    found = Statistics.from_units([observer.collect()])
    both = Observed((found,), found)
    site = Site("x", "input")
    plain = QuantizationPoint("x", "activation", (site,), (8,), spec=QuantizerSpec("symmetric"))
    assert find_range(plain, both, Rule("threesigma", reference=True), 4).signed
    ours = find_range(plain, both, Rule("threesigma"), 4)
    assert not ours.signed
    assert ours.scale == pytest.approx([9 / 15])


def test_the_parity_mode_goes_through_the_whole_stage():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    setup = place_quantizers(model, (x[:2],), PlacementConfig(weight_bit_widths=(4, 8)))
    found = calibrate_model(
        model,
        setup,
        [x],
        CalibrationConfig(shard_size=4, weights="mixed_min_max", activations="mixed_min_max", reference=True),
    )
    name = next(iter(setup.of_kind("activation")))
    low, high = x.amin(1).double().mean(), x.amax(1).double().mean()
    _, width = tune_range(low, high - low, 256)
    assert found[name, 8].scale * 255 == pytest.approx([float(width)], rel=1e-6)
    weight = model[0].weight.detach().abs().amax(1).clamp_min(0.1)
    # One interval for every width: the scale is the value of the highest code.
    assert found["0.weight", 4].scale * 7 == pytest.approx(weight.numpy(), rel=1e-6)
    assert found["0.weight", 8].scale * 127 == pytest.approx(weight.numpy(), rel=1e-6)
