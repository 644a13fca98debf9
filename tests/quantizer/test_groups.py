"""Weights of any shape, cut into groups anywhere: codes, values and learned scales against numpy."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysearch.quantizer import make_quantizer, point_levels
from raysearch.records import Granularity, QuantizationPoint, QuantizerRange, QuantizerSpec


@st.composite
def points(draw: st.DrawFn) -> QuantizationPoint:
    """A weight with groups."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=2, max_size=4)))
    axis, group_axis = draw(st.permutations(range(len(shape))))[:2]
    granularity = Granularity.per_group(draw(st.integers(1, 6)), axis, group_axis)
    spec = draw(st.sampled_from([None, QuantizerSpec("asymmetric"), QuantizerSpec(signed=False)]))
    return QuantizationPoint("w", "weight", (), shape, granularity, spec=spec)


@settings(max_examples=60, deadline=None)
@given(points(), st.integers(2, 8), st.integers(0, 99))
def test_codes_values_and_gradients_are_numpys(point: QuantizationPoint, bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    low, high = point_levels(point, bits)
    sizes = point.granularity.scale_shape(point.shape)
    scale = rng.uniform(0.1, 1, sizes).astype(np.float32)
    is_asymmetric = point.grid_spec.mode == "asymmetric"
    zero = rng.integers(low, high + 1, sizes) * is_asymmetric
    quantizer = make_quantizer(point)
    value = QuantizerRange(scale.reshape(-1), zero.reshape(-1).astype(np.int32), low < 0)
    quantizer.set_range(bits, value)
    x = (rng.normal(size=point.shape) * (high - low) / 3).astype(np.float32)
    upstream = rng.normal(size=point.shape).astype(np.float32)

    index = list(np.indices(point.shape))
    index[point.granularity.group_axis] //= point.granularity.group_size
    for place, size in enumerate(sizes):
        index[place] = np.minimum(index[place], size - 1)
    step, offset = scale[tuple(index)], zero[tuple(index)]
    rounded = np.rint(x / step)
    expected = np.clip(rounded + offset, low, high)
    level = expected - offset
    is_inside = level == rounded
    slope = upstream.astype(np.float64) * (level - np.where(is_inside, x / step, 0))
    by_scale = np.zeros(sizes)
    np.add.at(by_scale, tuple(index), slope)

    weight = torch.from_numpy(x).requires_grad_()
    y = quantizer(weight)
    assert np.array_equal(quantizer.codes(weight).numpy(), expected)
    assert np.array_equal(y.detach().numpy(), level.astype(np.float32) * step)
    y.backward(torch.from_numpy(upstream))
    assert np.array_equal(weight.grad.numpy(), upstream * is_inside)
    gamma = quantizer.gradient_scale(weight)
    np.testing.assert_allclose(quantizer.scale.grad.numpy(), gamma * by_scale, rtol=1e-4, atol=1e-5)
