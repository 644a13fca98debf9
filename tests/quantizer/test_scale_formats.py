"""Scales as they are stored: the nearest values that a format holds, and the gradient of the scale itself."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysearch.quantizer import SMALLEST_SCALE, storable, storable_through
from raysearch.records.scale_format import SCALE_FORMATS


@pytest.mark.parametrize("name", SCALE_FORMATS)
@given(st.floats(2.0**-140, 2.0**127))
def test_a_storable_scale_is_positive_finite_nearest_and_its_own(name, value):
    scale = torch.tensor([value], dtype=torch.float64)
    stored = storable(scale, name)
    dtype = getattr(torch, name)
    form = SCALE_FORMATS[name]
    assert stored.dtype == torch.float64
    assert torch.equal(stored.to(dtype).double(), stored)
    assert torch.equal(storable(stored, name), stored)
    assert form.smallest <= float(stored) <= form.largest
    if form.smallest <= value <= form.largest:
        assert abs(float(stored) - value) <= max(torch.finfo(dtype).eps * value, form.smallest) / 2


def test_float32_is_the_clamp_that_a_quantizer_always_had():
    scale = torch.tensor([0.0, 1e-38, 0.1, 3e38])
    assert torch.equal(storable(scale), scale.clamp_min(SMALLEST_SCALE))
    assert torch.equal(storable_through(scale, "float32"), scale.clamp_min(SMALLEST_SCALE))


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_the_gradient_passes_straight_through(name):
    scale = torch.tensor([1e-9, 0.1, 3.3, 1e5], requires_grad=True)
    stored = storable_through(scale, name)
    assert torch.equal(stored, storable(scale.detach(), name))
    (gradient,) = torch.autograd.grad((stored * torch.arange(4.0)).sum(), scale)
    assert torch.equal(gradient, torch.arange(4.0))
