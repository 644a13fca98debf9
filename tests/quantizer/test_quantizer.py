import copy
import math
import shutil

import numpy as np
import pytest
import torch

from raysearch.errors import StorageError
from raysearch.quantizer import (
    SMALLEST_SCALE,
    AsymmetricQuantizer,
    SymmetricQuantizer,
    fake_quantize,
    make_quantizer,
)
from raysearch.records import Granularity, QuantizationPoint, QuantizerRange
from tests.support.quantized_models import WIDTHS


def weight_quantizer(bits: int = 4, scale: float = 0.1) -> SymmetricQuantizer:
    quantizer = SymmetricQuantizer((3, 4), Granularity(0))
    quantizer.set_range(bits, QuantizerRange(np.full(3, scale, np.float32), np.zeros(3, np.int32), True))
    return quantizer


def activation_quantizer(bits: int = 8, scale: float = 0.1, zero: int = 3) -> AsymmetricQuantizer:
    quantizer = AsymmetricQuantizer()
    value = QuantizerRange(np.array([scale], np.float32), np.array([zero], np.int32), False)
    quantizer.set_range(bits, value)
    return quantizer


@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_are_what_the_forward_stands_for(bits: int) -> None:
    x = torch.randn(3, 4) * 3
    for quantizer in (weight_quantizer(bits), activation_quantizer(bits)):
        codes = quantizer.codes(x)
        low, high = quantizer.levels
        assert codes.dtype == (torch.int8 if quantizer.signed else torch.uint8)
        assert int(codes.min()) >= low
        assert int(codes.max()) <= high
        values = (codes.float() - quantizer.zero_point) * quantizer.effective_scale()
        assert torch.equal(quantizer(x), values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_input_dtype_is_kept_and_codes_are_those_of_float32(dtype: torch.dtype) -> None:
    quantizer = activation_quantizer(4, 0.3)
    x = torch.randn(5, 6).to(dtype).requires_grad_()
    y = quantizer(x)
    assert y.dtype == dtype
    assert torch.equal(y, quantizer(x.float()).to(dtype))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


@pytest.mark.parametrize("value", [0.0, -0.1, -1e-38, 1e-45])
def test_a_scale_at_or_below_zero_stays_safe_and_codes_read_the_same_scale(value: float) -> None:
    quantizer = weight_quantizer()
    with torch.no_grad():
        quantizer.scale.fill_(value)
    x = torch.randn(3, 4).requires_grad_()
    y = quantizer(x)
    scale = quantizer.effective_scale()
    assert bool((scale >= SMALLEST_SCALE).all())
    assert torch.equal(y, quantizer.codes(x).float() * scale)
    y.sum().backward()
    assert quantizer.scale.grad is not None
    assert bool(torch.isfinite(quantizer.scale.grad).all())
    assert torch.equal(y, weight_quantizer(scale=max(abs(value), SMALLEST_SCALE))(x))


def test_a_negative_scale_is_driven_by_the_mirrored_gradient() -> None:
    up, down = weight_quantizer(scale=0.1), weight_quantizer(scale=0.1)
    with torch.no_grad():
        down.scale.neg_()
    x = torch.randn(3, 4)
    for quantizer in (up, down):
        quantizer(x).square().sum().backward()
    assert up.scale.grad is not None
    assert down.scale.grad is not None
    assert torch.equal(up.scale.grad, -down.scale.grad)


def test_the_gradient_scale_counts_elements_a_scale_and_is_free_of_the_batch() -> None:
    assert weight_quantizer(4).gradient_scale(torch.zeros(3, 4)) == 1 / math.sqrt(4 * 7)
    quantizer = make_quantizer(QuantizationPoint("fc.input", "activation", (), (2, 3)))
    quantizer.num_bits = 4
    for batch in (0, 1, 5):
        assert quantizer.gradient_scale(torch.zeros(batch, 2, 3)) == 1 / math.sqrt(6 * 15)


def test_disabled_it_hands_back_its_input() -> None:
    quantizer = weight_quantizer()
    quantizer.enabled = False
    x = torch.randn(3, 4)
    assert quantizer(x) is x


def test_zero_is_exactly_on_the_grid_of_an_activation() -> None:
    assert activation_quantizer(5, 0.37, 11)(torch.zeros(1, 1)).tolist() == [[0.0]]


def test_the_state_dict_holds_everything() -> None:
    source, target = activation_quantizer(5, 0.2, 7), AsymmetricQuantizer()
    source.enabled = False
    target.load_state_dict(source.state_dict())
    assert (target.num_bits, target.zero_point, target.enabled) == (5, 7, False)
    assert torch.equal(target.scale, source.scale)


@pytest.mark.parametrize("state", [[4, 0], [9, 0, 1], [1, 0, 1], [4, 200, 1], [4, 0, 2], [4, -9, 1]])
def test_a_foreign_state_is_refused_and_nothing_taken(state: list[int]) -> None:
    for quantizer in (weight_quantizer(3), activation_quantizer(3)):
        before = quantizer.get_extra_state()
        with pytest.raises(StorageError, match="quantizer"):
            quantizer.set_extra_state(torch.tensor(state, dtype=torch.int32))
        assert torch.equal(quantizer.get_extra_state(), before)


def test_a_deep_copy_is_independent() -> None:
    first = weight_quantizer()
    second = copy.deepcopy(first)
    second.num_bits = 8
    with torch.no_grad():
        second.scale.mul_(2)
    assert first.num_bits == 4
    assert torch.equal(first.scale * 2, second.scale)


def test_it_says_what_it_is() -> None:
    assert "4 bits, levels (-8, 7), per channel of axis 0" in repr(weight_quantizer())
    assert "per tensor" in repr(activation_quantizer())


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_the_default_compiler_gives_the_same_bits_at_any_batch_size() -> None:
    quantizer = AsymmetricQuantizer()
    quantizer.set_range(4, QuantizerRange(np.array([0.2], np.float32), np.array([3], np.int32), False))
    compiled = torch.compile(quantizer, fullgraph=True, dynamic=True)
    for count in (3, 8):
        x = torch.randn(count, 5, generator=torch.Generator().manual_seed(count))
        values = []
        for module in (quantizer, compiled):
            given = x.clone().requires_grad_()
            y = module(given)
            y.backward(x)
            values.append((y.detach(), given.grad))
        assert torch.equal(values[0][0], values[1][0])
        assert torch.equal(values[0][1], values[1][1])


@pytest.mark.parametrize("kind", ["weight", "activation"])
def test_a_scale_gets_the_gradient_of_its_magnitude_beyond_the_smallest(kind: str) -> None:
    """Bit for bit that of the operations one by one, at either sign and at the bound itself."""
    torch.manual_seed(5)
    smallest = SMALLEST_SCALE
    values = torch.tensor([0.1, -0.1, smallest, -smallest, smallest / 2, -smallest / 2, 0.0])
    quantizer = SymmetricQuantizer((7, 4), Granularity(0), kind="weight")
    if kind == "activation":
        quantizer = AsymmetricQuantizer((7, 4), Granularity(0), kind="activation")
    with torch.no_grad():
        quantizer.scale.copy_(values.reshape(7, 1))
    x = torch.randn(7, 4).requires_grad_()
    grad = torch.randn(7, 4)
    quantizer(x).backward(grad)
    got = x.grad, quantizer.scale.grad
    low, high = quantizer.levels
    gamma = quantizer.gradient_scale(x)
    y = fake_quantize(x, quantizer.effective_scale(), quantizer.zero_point, low, high, gamma)
    expected = torch.autograd.grad(y, (x, quantizer.scale), grad)
    for one, other in zip(got, expected, strict=True):
        assert one is not None
        assert torch.equal(one, other)
    assert torch.equal(quantizer.scale.grad[4:], torch.zeros(3, 1))
