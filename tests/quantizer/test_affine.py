import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from raysearch.quantizer import SymmetricQuantizer, dequantize, fake_quantize, quant_levels, quantize
from raysearch.records import Granularity
from tests.support.fake_quantize_oracle import fake_quantize_gradients
from tests.support.quantized_models import WIDTHS

GRANULARITIES = {"tensor": (1, 1, 1), "axis0": (3, 1, 1), "axis1": (1, 4, 1)}


def sample(granularity: str, bits: int) -> tuple[Tensor, Tensor]:
    """Values that reach beyond both ends of the grid, and a scale that broadcasts."""
    torch.manual_seed(bits)
    scale = torch.rand(GRANULARITIES[granularity]) * 0.2 + 0.05
    return torch.randn(3, 4, 6) * scale * 2 ** (bits - 1), scale


def on_ties_and_bounds(bits: int, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Every half step from two below the lowest level to two above the highest, at an exact scale."""
    steps = torch.arange(2 * (low - 2), 2 * (high + 2) + 1) / 2
    return steps.reshape(1, -1) * 0.25, torch.full((1, 1), 0.25)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_forward_is_integer_arithmetic_bit_for_bit(granularity: str, bits: int, signed: bool) -> None:
    x, scale = sample(granularity, bits)
    low, high = quant_levels(bits, signed=signed)
    zero = 0 if signed else 2 ** (bits - 1) - 1
    codes = np.clip(np.rint(x.numpy() / scale.numpy()).astype(np.int64) + zero, low, high)
    expected = (codes - zero).astype(np.float32) * scale.numpy()
    assert np.array_equal(fake_quantize(x, scale, zero, low, high).numpy(), expected)
    stored = quantize(x, scale, zero, low, high)
    assert np.array_equal(stored.numpy(), codes)
    container = stored.to(torch.int8 if signed else torch.uint8)
    assert np.array_equal(dequantize(container, scale, zero).numpy(), expected)


@pytest.mark.parametrize("bits", WIDTHS)
def test_ties_go_to_even_and_the_ends_hold(bits: int) -> None:
    low, high = quant_levels(bits, signed=True)
    x, scale = on_ties_and_bounds(bits, low, high)
    expected = np.clip(np.rint(x.numpy() * 4), low, high) / 4
    assert np.array_equal(fake_quantize(x, scale, 0, low, high).numpy(), expected)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("granularity", [*GRANULARITIES, "ties"])
def test_gradients_are_the_dense_formula(granularity: str, bits: int) -> None:
    low, high = quant_levels(bits, signed=True)
    x, scale = on_ties_and_bounds(bits, low, high) if granularity == "ties" else sample(granularity, bits)
    grad = torch.randn_like(x)
    x.requires_grad_()
    scale.requires_grad_()
    gamma = 0.3
    fake_quantize(x, scale, 0, low, high, gamma).backward(grad)
    dx, ds = fake_quantize_gradients(x.detach(), scale.detach(), low, high, grad, gamma)
    assert x.grad is not None
    assert scale.grad is not None
    assert torch.equal(x.grad, dx)
    torch.testing.assert_close(scale.grad.double(), ds, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gradients_are_those_of_torchs_own_operation(granularity: str, bits: int) -> None:
    low, high = quant_levels(bits, signed=granularity != "tensor")
    x, scale = sample(granularity, bits)
    zero = 0 if granularity != "tensor" else 2 ** (bits - 1)
    # torch multiplies by 1/s, so a value next to a tie may fall on the other side of it.
    v = x / scale
    x = torch.where((v - v.floor() - 0.5).abs() < 1e-3, x + 0.1 * scale, x)
    grad, gamma = torch.randn_like(x), 0.25
    ours = [x.clone().requires_grad_(), scale.clone().requires_grad_()]
    fake_quantize(ours[0], ours[1], zero, low, high, gamma).backward(grad)
    theirs = [x.clone().requires_grad_(), scale.reshape(-1).clone().requires_grad_()]
    zeros = torch.full((scale.numel(),), float(zero), requires_grad=True)
    if granularity == "tensor":
        y = torch._fake_quantize_learnable_per_tensor_affine(*theirs, zeros, low, high, gamma)
    else:
        axis = int(granularity[-1])
        y = torch._fake_quantize_learnable_per_channel_affine(*theirs, zeros, axis, low, high, gamma)
    y.backward(grad)
    assert ours[0].grad is not None
    assert theirs[0].grad is not None
    assert torch.equal(ours[0].grad, theirs[0].grad)
    assert ours[1].grad is not None
    assert theirs[1].grad is not None
    size = theirs[1].grad.abs().max().clamp_min(1)
    torch.testing.assert_close(ours[1].grad.reshape(-1) / size, theirs[1].grad / size, rtol=1e-6, atol=1e-6)


def test_double_backward_is_the_derivative_of_the_gradient() -> None:
    low, high = quant_levels(3, signed=True)
    x, scale = sample("axis0", 3)
    x.requires_grad_()
    scale.requires_grad_()
    grad = torch.randn_like(x).requires_grad_()
    y = fake_quantize(x, scale, 0, low, high, 0.5)
    dx, ds = torch.autograd.grad(y, (x, scale), grad, create_graph=True)
    weights = torch.randn_like(dx), torch.randn_like(ds)
    (back,) = torch.autograd.grad((dx, ds), grad, weights, retain_graph=True)
    v = (x / scale).detach()
    level = v.round().clamp(low, high)
    inside = (level == v.round()).float()
    expected = weights[0] * inside + weights[1] * 0.5 * (level - inside * v)
    torch.testing.assert_close(back, expected)
    # ds = γ·Σ g·(c − m·v), so its derivative by x is −γ·g·m/s.
    (curvature,) = torch.autograd.grad(ds, x, weights[1])
    torch.testing.assert_close(curvature, (-weights[1] * 0.5 * grad * inside / scale).detach())


def test_an_overflowing_quotient_leaves_gradients_finite() -> None:
    x = torch.tensor([1e30, -1e30, 0.0]).requires_grad_()
    scale = torch.tensor([1e-30]).requires_grad_()
    fake_quantize(x, scale, 0, -8, 7).sum().backward()
    assert x.grad is not None
    assert scale.grad is not None
    assert x.grad.tolist() == [0, 0, 1]
    assert scale.grad.tolist() == [-1]


def test_functional_grad_takes_it() -> None:
    x, scale = sample("tensor", 4)
    slope = torch.func.grad(lambda t: fake_quantize(t, scale, 0, -8, 7).sum())(x)
    assert set(slope.unique().tolist()) <= {0.0, 1.0}


class CountOperations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += "detach" not in str(function)
        return function(*args, **(kwargs or {}))


def test_d44_a_step_costs_no_more_operations() -> None:
    # The time of a small weight is the number of operations; each costs as much as 10,000 elements.
    x, scale = sample("axis0", 4)
    x.requires_grad_()
    scale.requires_grad_()
    with CountOperations() as forward:
        y = fake_quantize(x, scale, 0, -8, 7, 0.5)
    grad = torch.ones_like(y)
    with CountOperations() as backward:
        y.backward(grad)
    assert (forward.count, backward.count) == (4, 9)
    quantizer = SymmetricQuantizer((3, 4, 6), Granularity(0))
    with CountOperations() as forward:
        y = quantizer(x)
    assert forward.count == 6
    quantizer.freeze()
    with CountOperations() as backward:
        quantizer(x).backward(grad)
    assert backward.count <= 6 + 2 + 1  # forward; the mask's two; adding to x.grad
