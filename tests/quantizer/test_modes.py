"""Every kind of quantizer: what holds for all of them."""

import copy
import itertools
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raysearch.errors import PlacementError, StorageError
from raysearch.quantizer import Quantizer, dequantize, make_quantizer, point_levels
from raysearch.records import QuantizationPoint, QuantizerRange, QuantizerSpec
from tests.support.oracles import WIDTHS

SPECS = {
    "default": None,
    "signed": QuantizerSpec(signed=True),
    "unsigned": QuantizerSpec(signed=False),
    "narrow": QuantizerSpec(signed=True, narrow_range=True),
    "narrow unsigned": QuantizerSpec(signed=False, narrow_range=True),
    "half": QuantizerSpec(signed=True, half_range=True),
    "log": QuantizerSpec(signed=True, logarithm_scale=True),
    "asymmetric": QuantizerSpec("asymmetric"),
    "asymmetric half": QuantizerSpec("asymmetric", half_range=True),
    "asymmetric log": QuantizerSpec("asymmetric", logarithm_scale=True),
}
AXES = (None, 0, 1, -1)
SHAPE = (3, 4, 5)
MODES = list(itertools.product(("weight", "activation"), SPECS, ("step", "range")))


def point(kind: str, spec: str, axis: int | None = 0) -> QuantizationPoint:
    return QuantizationPoint("a.b", kind, (), SHAPE, axis, spec=SPECS[spec])  # type: ignore[arg-type]


def make(kind: str, spec: str, learning: str, axis: int | None = 0, bits: int = 4) -> Quantizer:
    at = point(kind, spec, axis)
    made = make_quantizer(at, learning=learning)  # type: ignore[arg-type]
    low, high = point_levels(at, bits)
    rng = np.random.default_rng(bits)
    count = at.num_scales if axis is None or axis >= 0 else SHAPE[axis]
    zero = rng.integers(low, high + 1, count) if made.mode == "asymmetric" else np.zeros(count)
    scale = rng.uniform(0.05, 0.25, count).astype(np.float32)
    made.set_range(bits, QuantizerRange(scale, zero.astype(np.int32), low < 0))
    return made


def data(kind: str, quantizer: Quantizer) -> Tensor:
    torch.manual_seed(0)
    shape = SHAPE if kind == "weight" else (6, *SHAPE)
    return torch.randn(shape) * 0.15 * (quantizer.levels[1] - quantizer.levels[0])


@pytest.mark.parametrize(("kind", "spec", "learning"), MODES)
def test_forward_is_integer_arithmetic_bit_for_bit(kind: str, spec: str, learning: str) -> None:
    for bits, axis in itertools.product(WIDTHS, AXES):
        if bits == 2 and spec in ("half", "narrow half"):
            continue
        quantizer = make(kind, spec, learning, axis, bits)
        x = data(kind, quantizer)
        codes, form = quantizer.codes(x), quantizer.affine()
        low, high = quantizer.levels
        assert (form.quant_min, form.quant_max) == (low, high) == point_levels(point(kind, spec), bits)
        assert codes.dtype == (torch.int8 if low < 0 else torch.uint8)
        scale, zero = form.scale.numpy(), form.zero_point.numpy()
        assert form.offset is None
        expected = np.clip(np.rint(x.numpy() / scale).astype(np.int64) + zero, low, high)
        assert np.array_equal(codes.numpy(), expected)
        values = (expected - zero).astype(np.float32) * scale
        assert np.array_equal(quantizer(x).detach().numpy(), values)
        assert torch.equal(dequantize(codes, form.scale, form.zero_point), torch.from_numpy(values))
        moved = form.shifted(-low)
        shifted = (codes.int() - low).to(torch.uint8)
        assert torch.equal(dequantize(shifted, moved.scale, moved.zero_point), torch.from_numpy(values))
        assert not quantizer(torch.zeros_like(x)).any()


def test_an_end_that_cannot_be_tuned_rounds_with_an_offset_unless_it_is_snapped() -> None:
    at = QuantizationPoint("a", "weight", (), (50,), spec=QuantizerSpec("asymmetric"))
    x = torch.linspace(-1, 4, 50)
    for snap in (False, True):
        quantizer = make_quantizer(at, learning="range", snap=snap)
        quantizer.set_min_max(2, torch.tensor([-0.3]), torch.tensor([3.0]))  # type: ignore[operator]
        form = quantizer.affine()
        assert (form.offset is None) == snap
        # The codes mean the same in both cases, so that strip is exact; 0 is on the grid.
        assert torch.equal(quantizer(x), dequantize(quantizer.codes(x), form.scale, form.zero_point))
        assert quantizer(torch.zeros(50)).eq(0).all()
        assert quantizer.codes(x).unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("kind", "spec", "learning"), MODES)
def test_the_state_dict_goes_round_with_everything(kind: str, spec: str, learning: str) -> None:
    source = make(kind, spec, learning, bits=3).freeze()
    source.enabled = kind == "weight"
    at = point(kind, spec)
    target = make_quantizer(at, learning=learning)  # type: ignore[arg-type]
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    assert (target.num_bits, target.frozen, target.enabled) == (3, True, kind == "weight")
    assert not any(p.requires_grad for p in target.parameters())
    source.enabled = target.enabled = True
    x = data(kind, source)
    assert torch.equal(target(x), source(x))
    assert torch.equal(target.codes(x), source.codes(x))


@pytest.mark.parametrize(("kind", "spec", "learning"), MODES)
def test_it_learns_unless_it_is_frozen_and_gradients_can_be_derived(
    kind: str, spec: str, learning: str
) -> None:
    quantizer = make(kind, spec, learning)
    parameters = [p for p, size in quantizer.learned() if size > 0]
    assert len(parameters) == len(list(quantizer.parameters()))
    x = data(kind, quantizer).requires_grad_()
    before = quantizer(x)
    grads = torch.autograd.grad(before.square().sum(), [x, *parameters], create_graph=True)
    assert all(bool(g.isfinite().all()) and bool(g.any()) for g in grads)
    (second,) = torch.autograd.grad(sum(g.sum() for g in grads), x)
    assert bool(second.isfinite().all())
    after = quantizer.freeze()(x)
    assert torch.equal(after, before)
    quantizer.train().requires_grad_(True)
    assert not any(p.requires_grad for p in quantizer.parameters())
    after.sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in quantizer.parameters())
    assert all(p.requires_grad for p in quantizer.freeze(False).parameters())


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_fast_gradients_are_the_differentiable_ones(bits: int) -> None:
    for spec in ("signed", "unsigned", "default"):
        quantizer = make("weight", spec, "step", 0, bits)
        low, high = quantizer.levels
        # All ties, those beyond both ends too.
        steps = torch.arange(2 * low - 4, 2 * high + 5) / 2
        scale = torch.tensor([0.25, 0.5, 1.0])
        x = (steps * scale[:, None]).unsqueeze(1).requires_grad_()
        with torch.no_grad():
            quantizer.scale.copy_(scale.reshape(3, 1, 1))
        y, g = quantizer(x), torch.randn(x.shape)
        fast = torch.autograd.grad(y, (x, quantizer.scale), g, retain_graph=True)
        slow = torch.autograd.grad(y, (x, quantizer.scale), g, create_graph=True)
        assert torch.equal(fast[0], slow[0])
        torch.testing.assert_close(fast[1], slow[1])


class Layer(nn.Module):
    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        return self.quantizer(x) * 2


@pytest.mark.parametrize("learning", ["step", "range"])
@pytest.mark.parametrize("spec", ["signed", "asymmetric", "log"])
@pytest.mark.parametrize("axis", [None, 0])
def test_export_with_an_open_batch_is_bit_equal(spec: str, learning: str, axis: int | None) -> None:
    layer = Layer(make("activation", spec, learning, axis))
    x = data("activation", layer.quantizer)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own, while it exports
        program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        for batch in (2, 6, 9):
            other = torch.randn(batch, *SHAPE)
            assert torch.equal(program.module()(other), layer(other))


@pytest.mark.slow
@pytest.mark.parametrize("learning", ["step", "range"])
@pytest.mark.parametrize("spec", ["signed", "asymmetric", "log"])
def test_compile_takes_the_full_graph_with_equal_values_and_gradients(spec: str, learning: str) -> None:
    layer = Layer(make("weight", spec, learning))
    x = data("weight", layer.quantizer).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, while it compiles
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        inputs = (x, *layer.quantizer.parameters())
        ours = torch.autograd.grad(compiled(x).square().sum(), inputs)
        assert torch.equal(compiled(x), layer(x))
    theirs = torch.autograd.grad(layer(x).square().sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_what_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(PlacementError, match=r"'a\.b' of shape \(3, 4, 5\) has no axis 3"):
        make_quantizer(point("weight", "default", 3))
    with pytest.raises(PlacementError, match=r"'a\.b' is to learn its 'zero'"):
        make_quantizer(point("weight", "default"), learning="zero")  # type: ignore[arg-type]
    with pytest.raises(PlacementError, match=r"'a\.b': 2 bits with half range have no level above 0"):
        make("weight", "half", "step", 0, 2)
    with pytest.raises(PlacementError, match=r"'a\.b': the bit-width 9 is outside 2–8"):
        point_levels(point("weight", "default"), 9)
    quantizer = make("weight", "signed", "step")
    before = copy.deepcopy(quantizer.state_dict())
    for scales, zeros in ((2, 0), (3, 1)):
        value = QuantizerRange(np.ones(scales, np.float32), np.full(scales, zeros, np.int32), True)
        with pytest.raises(PlacementError, match=r"'a\.b' at 8 bits takes 3 scales and zero points of 0"):
            quantizer.set_range(8, value)
    with pytest.raises(StorageError, match=r"'a\.b'"):
        quantizer.set_extra_state(torch.tensor([4, 0, 1, 0, 0], dtype=torch.int32))
    assert str(quantizer.state_dict()) == str(before)


def test_the_sign_comes_from_the_data_unless_the_spec_says() -> None:
    ones, zeros = np.ones(1, np.float32), np.zeros(1, np.int32)
    for forced, data_signed, expected in (
        (None, False, (0, 15)),
        (None, True, (-8, 7)),
        (False, True, (0, 15)),
    ):
        at = QuantizationPoint("a", "activation", (), (3,), spec=QuantizerSpec(signed=forced))
        quantizer = make_quantizer(at)
        quantizer.set_range(4, QuantizerRange(ones, zeros, data_signed))
        assert quantizer.levels == expected
        again = make_quantizer(at)
        again.load_state_dict(quantizer.state_dict())
        assert again.levels == expected
