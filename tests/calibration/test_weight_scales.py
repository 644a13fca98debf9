"""Weight ranges against numpy and a brute-force search."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raysearch.calibration.weights import min_max_scale, mse_affine, mse_minimum, mse_scale
from raysearch.quantizer import SMALLEST_SCALE, AffineForm, SymmetricQuantizer, quant_levels, storable
from raysearch.records import Granularity, QuantizerRange

BITS = (2, 3, 4, 5, 6, 7, 8)
ROWS = Granularity.per_channel(0)


def weight_of(name):
    generator = torch.Generator().manual_seed(3)
    normal = torch.randn(8, 60, generator=generator)
    return {
        "normal": normal,
        "heavy": normal / torch.rand(8, 60, generator=generator).sqrt(),
        "spiky": torch.cat([normal * 0.02, torch.ones(8, 1)], 1),
        "few": normal[:, :3],
        "single": normal[:, :1],
        "negative": -normal.abs(),
        "small": normal * 1e-20,
        "conv": normal.reshape(8, 5, 4, 3),
    }[name]


def errors(weight, scale, bits):
    low, high = quant_levels(bits, signed=True)
    rows = weight.reshape(len(weight), -1).double().numpy()
    steps = np.asarray(scale, dtype=np.float64).reshape(-1, 1)
    return ((np.clip(np.rint(rows / steps), low, high) * steps - rows) ** 2).sum(1)


def brute_force(weight, bits):
    _, high = quant_levels(bits, signed=True)
    peak = weight.reshape(len(weight), -1).abs().amax(1).numpy()
    clips = np.linspace(1.3 / 3000, 1.3, 3000)
    return np.min([errors(weight, peak * clip / high, bits) for clip in clips], axis=0)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", ["normal", "heavy", "spiky", "few", "single", "negative", "small", "conv"])
def test_mse_is_never_worse_than_min_max(name, bits):
    weight = weight_of(name)
    found = errors(weight, mse_scale(weight, ROWS, bits), bits)
    base = errors(weight, min_max_scale(weight, ROWS, bits), bits)
    energy = weight.reshape(8, -1).double().square().sum(1).numpy()
    # Up to the rounding of sums in float32.
    assert (found <= base * (1 + 1e-5) + energy * 1e-12).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("name", ["normal", "heavy", "spiky", "negative", "conv"])
def test_mse_is_close_to_a_fine_search(name, bits):
    weight = weight_of(name)
    found, best = errors(weight, mse_scale(weight, ROWS, bits), bits), brute_force(weight, bits)
    assert found.sum() <= best.sum() * 1.01
    assert (found <= best * (1.01 if bits <= 4 else 1.1)).all()


@pytest.mark.parametrize("estimate", [mse_scale, min_max_scale])
@pytest.mark.parametrize("bits", BITS)
def test_a_weight_on_a_min_max_grid_stays_as_it_is(estimate, bits):
    _, high = quant_levels(bits, signed=True)
    codes = torch.randint(-high, high + 1, (4, 40), generator=torch.Generator().manual_seed(0))
    codes[:, 0] = high
    weight = codes * torch.tensor([[0.3], [1.7], [0.011], [5.0]])
    quantizer = SymmetricQuantizer((4, 40), ROWS)
    quantizer.set_range(bits, QuantizerRange(estimate(weight, ROWS, bits), np.zeros(4, np.int32), True))
    with torch.no_grad():
        torch.testing.assert_close(quantizer(weight), weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("bits", [2, 8])
def test_min_max_is_numpys(axis, bits):
    weight = weight_of("conv")
    _, high = quant_levels(bits, signed=True)
    others = tuple(d for d in range(4) if d != axis) if axis is not None else None
    expected = np.atleast_1d(np.abs(weight.numpy()).max(axis=others)) / np.float32(high)
    assert min_max_scale(weight, Granularity(axis), bits).tolist() == expected.tolist()
    assert mse_scale(weight, Granularity(axis), bits).shape == expected.shape


def test_channels_do_not_see_each_other():
    weight = weight_of("normal")
    together = mse_scale(weight, ROWS, 3)
    assert together.tolist() == [float(mse_scale(weight[c : c + 1], ROWS, 3)[0]) for c in range(8)]
    assert mse_scale(weight.T.contiguous(), Granularity(1), 3) == pytest.approx(together, rel=1e-6)


@pytest.mark.parametrize("estimate", [mse_scale, min_max_scale])
@pytest.mark.parametrize("bits", BITS)
def test_a_channel_of_zeros_is_safe(estimate, bits):
    weight = weight_of("normal").clone()
    weight[2] = 0
    scale = estimate(weight, ROWS, bits)
    assert scale.dtype == np.float32
    # What the quantizer would use in its place, so that the table says what is deployed.
    assert scale[2] == np.float32(SMALLEST_SCALE)
    assert (scale > 0).all()
    assert errors(weight, scale, bits)[2] == 0


def test_scales_grow_with_the_weight():
    weight = weight_of("heavy")
    assert mse_scale(4 * weight, ROWS, 3).tolist() == (4 * mse_scale(weight, ROWS, 3)).tolist()


def test_half_precision_weights_are_read_as_float32():
    weight = weight_of("normal").to(torch.bfloat16)
    assert mse_scale(weight, ROWS, 4).tolist() == mse_scale(weight.float(), ROWS, 4).tolist()


def affine_errors(weight, scale, zero, bits):
    codes = np.clip(np.rint(weight / scale) + zero, 0, 2**bits - 1)
    return (((codes - zero) * scale - weight) ** 2).sum(1)


def clipped(weight, low_clip, high_clip, bits):
    """Scale and zero point of the interval with each end clipped by itself."""
    low = np.minimum(weight.min(1, keepdims=True), 0) * low_clip
    high = np.maximum(weight.max(1, keepdims=True), 0) * high_clip
    scale = (high - low) / (2**bits - 1)
    return scale, np.clip(np.rint(-low / scale), 0, 2**bits - 1)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", ["normal", "heavy", "spiky", "negative"])
def test_both_ends_of_an_asymmetric_range_are_searched(name, bits):
    weight = (weight_of(name) + 0.3).numpy().astype(np.float64)
    range_ = mse_affine(torch.from_numpy(weight).float(), ROWS, (0, 2**bits - 1))
    found = affine_errors(weight, range_.scale[:, None].astype(np.float64), range_.zero_point[:, None], bits)
    clips = np.linspace(0.05, 1, 20)
    pairs = [affine_errors(weight, *clipped(weight, a, b, bits), bits) for a in clips for b in clips]
    assert found.sum() <= np.min(pairs, axis=0).sum() * 1.01
    assert (found <= affine_errors(weight, *clipped(weight, 1, 1, bits), bits) * (1 + 1e-5)).all()


def nearest_error(weight, value, levels, granularity):
    parts = [torch.from_numpy(part.reshape(granularity.scale_shape(weight.shape))) for part in value]
    scale, zero_point, minimum = parts
    form = AffineForm(scale, zero_point, *levels, granularity, minimum)
    blocks = weight.reshape(len(weight), -1, granularity.group_size)
    codes = torch.round((blocks + minimum[..., None]) / scale[..., None]) + zero_point[..., None]
    values = form.values(codes.clamp(*levels).reshape(weight.shape))
    return float((values - weight).square().sum())


@pytest.mark.parametrize(("name", "bits", "size"), [("q2_k", 2, 16), ("q4_k", 4, 32), ("q5_k", 5, 32)])
def test_stored_minima_miss_less_than_zero_points_of_the_grid(name, bits, size):
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(6, 512, generator=generator)
    weight[1:3].abs_()
    granularity, levels = Granularity.per_group(size), (0, 2**bits - 1)
    found = mse_minimum(weight, granularity, levels, name)
    for values, least in ((found.scale, 1), (found.minimum, 0)):
        stored = torch.from_numpy(values)
        assert torch.equal(storable(stored, name, least=least), stored)
    # It is taken off, so that the values of weights without a sign gain little by it.
    assert (found.minimum >= 0).all()
    assert (found.minimum.reshape(6, -1)[1:3] == 0).any()
    single = mse_affine(weight, granularity, levels)
    nothing = np.zeros_like(single.scale)
    base = nearest_error(weight, (single.scale, single.zero_point, nothing), levels, granularity)
    free = mse_minimum(weight, granularity, levels, "float32")
    best = nearest_error(weight, (free.scale, free.zero_point, free.minimum), levels, granularity)
    stored_error = nearest_error(weight, (found.scale, found.zero_point, found.minimum), levels, granularity)
    assert best < base
    # Neighbours of what is stored are tried too, so that it may even be the better one.
    assert 0.9 * best < stored_error < 1.1 * best
