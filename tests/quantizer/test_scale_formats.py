"""Scales as they are stored: the nearest values that a format holds, and the gradient of the scale itself."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysearch.quantizer import SMALLEST_SCALE, scale_steps, storable, storable_through
from raysearch.records.scale_format import SCALE_DTYPES, SCALE_FORMATS

SHARED = sorted(set(SCALE_FORMATS) - set(SCALE_DTYPES))


@pytest.mark.parametrize("name", SCALE_DTYPES)
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


def scale_blocks(seed, num_blocks=3):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(num_blocks, 1, generator=generator) * 20 - 10
    return (2.0**spread * (0.1 + torch.rand(num_blocks, 16, generator=generator))).reshape(-1)


@pytest.mark.parametrize("name", SHARED)
@given(st.integers(0, 2**32 - 1))
def test_neighbours_are_stored_as_integers_of_one_float16(name, seed):
    scale = scale_blocks(seed)
    stored, form = storable(scale, name), SCALE_FORMATS[name]
    step = scale_steps(stored, name)
    integers = stored / step
    assert torch.equal(step, step.half().float())
    blocks = step.reshape(-1, form.sharing)
    assert torch.equal(blocks[:, :1].expand_as(blocks).reshape(-1), step)
    assert torch.equal(integers, integers.round())
    assert integers.min() >= 1
    assert integers.max() <= form.highest
    assert torch.equal(storable(stored, name), stored)
    # Half a step of the greatest scale's highest integer.
    assert ((stored - scale).abs().reshape(-1, 16) <= 0.51 * step.reshape(-1, 16)).all()


@pytest.mark.parametrize("name", SHARED)
def test_scales_chosen_one_by_one_are_stored_together_where_the_step_is_given(name):
    scale = scale_blocks(0)
    step = scale_steps(scale, name)
    few, more = storable(scale, name, step), storable(scale * 0.7, name, step)
    mixed = torch.where(torch.arange(48) % 3 == 0, few, more)
    assert not torch.equal(mixed, few)
    assert torch.equal(storable(mixed, name), mixed)


@pytest.mark.parametrize("name", SHARED)
def test_the_gradient_of_shared_scales_passes_straight_through(name):
    scale = scale_blocks(1).requires_grad_()
    stored = storable_through(scale, name)
    assert torch.equal(stored, storable(scale.detach(), name))
    (gradient,) = torch.autograd.grad((stored * torch.arange(48.0)).sum(), scale)
    assert torch.equal(gradient, torch.arange(48.0))


@pytest.mark.parametrize("name", SCALE_FORMATS)
def test_minima_may_be_0_and_scales_may_not(name):
    values = scale_blocks(2)
    values[3:20] = 0
    minima = storable(values, name, least=0)
    assert not minima[3:20].any()
    assert torch.equal(storable(minima, name, least=0), minima)
    assert storable(values, name).min() > 0
