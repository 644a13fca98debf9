"""What every quantizer holds: its forward is integer arithmetic, it learns, and its state goes round.

A test class inherits it and says which points it is for; `tests/quantizer/` has one class a quantizer.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raysearch.errors import PlacementError, StorageError
from raysearch.quantizer import Quantizer, latent_weight, make_quantizer, point_levels
from raysearch.records import PER_TENSOR, Granularity, QuantizationPoint, QuantizerRange, QuantizerSpec
from tests.support.quantized_models import WIDTHS

SHAPE = (3, 4, 5)
KINDS = ("weight", "activation")
GRANULARITIES = (PER_TENSOR, Granularity(0), Granularity(1), Granularity(-1))
GROUPS = (
    Granularity.per_group(2),
    Granularity.per_group(1, axis=2, group_axis=0),
    # The last group is shorter, or there is but one.
    Granularity.per_group(2, axis=-2, group_axis=-1),
    Granularity.per_group(9),
)
"""Of weights alone."""


class Layer(nn.Module):
    """A module that uses a quantizer, as a program captures it."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        return self.quantizer(x) * 2


def spread_scales(value: Tensor, granularity: Granularity) -> np.ndarray:
    """One value a scale as what broadcasts to a weight of `SHAPE`, by numpy."""
    if granularity.group_axis is None:
        return value.numpy()
    groups = np.arange(SHAPE[granularity.group_axis]) // granularity.group_size
    return np.take(value.numpy(), groups, axis=granularity.group_axis)


class QuantizerContract:
    """Inherit and set `quantizer_type` and `SPECS`: the specs that the type is made for, by name."""

    quantizer_type: ClassVar[type[Quantizer]]
    SPECS: ClassVar[Mapping[str, QuantizerSpec | None]]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test for each kind of tensor and each spec."""
        if {"kind", "spec"} <= set(metafunc.fixturenames):
            names = itertools.product(KINDS, self.SPECS)
            cases = [(kind, name) for kind, name in names if self.is_made_for(kind, name)]
            metafunc.parametrize(("kind", "spec"), cases)

    def is_made_for(self, kind: str, spec: str) -> bool:
        """Whether a point of this kind and spec gets this quantizer."""
        return isinstance(make_quantizer(self.point(kind, spec)), self.quantizer_type)

    def granularities(self, kind: str) -> tuple[Granularity, ...]:
        """Those that a quantizer of such a tensor may have."""
        return (*GRANULARITIES, *GROUPS) if kind == "weight" else GRANULARITIES

    def point(self, kind: str, spec: str, granularity: Granularity = GRANULARITIES[1]) -> QuantizationPoint:
        """A point of `SHAPE`."""
        return QuantizationPoint("a.b", kind, (), SHAPE, granularity, spec=self.SPECS[spec])  # type: ignore[arg-type]

    def make(
        self, kind: str, spec: str, granularity: Granularity = GRANULARITIES[1], bits: int = 4
    ) -> Quantizer:
        """The point's quantizer with a range drawn by the width."""
        point = self.point(kind, spec, granularity)
        quantizer = make_quantizer(point)
        low, high = point_levels(point, bits)
        rng = np.random.default_rng(bits)
        zero_point = np.zeros(point.num_scales)
        if quantizer.mode == "asymmetric":
            zero_point = rng.integers(low, high + 1, point.num_scales)
        scale = rng.uniform(0.05, 0.25, point.num_scales).astype(np.float32)
        minimum = None
        if quantizer.minimum is not None:
            minimum = rng.uniform(0, 1, point.num_scales).astype(np.float32)
        value = QuantizerRange(scale, zero_point.astype(np.int32), low < 0, minimum=minimum)
        quantizer.set_range(bits, value)
        return quantizer

    def data(self, quantizer: Quantizer) -> Tensor:
        """Values that reach beyond both ends of the range."""
        generator = torch.Generator().manual_seed(0)
        shape = SHAPE if quantizer.kind == "weight" else (6, *SHAPE)
        low, high = quantizer.levels
        return torch.randn(shape, generator=generator) * 0.15 * (high - low)

    def test_the_forward_is_integer_arithmetic_bit_for_bit(self, kind: str, spec: str) -> None:
        for bits, granularity in itertools.product(WIDTHS, self.granularities(kind)):
            if bits == 2 and spec == "half":
                continue
            quantizer = self.make(kind, spec, granularity, bits)
            x = self.data(quantizer)
            codes, form = quantizer.codes(x), quantizer.affine()
            low, high = quantizer.levels
            assert (form.quant_min, form.quant_max) == (low, high)
            assert point_levels(self.point(kind, spec), bits) == (low, high)
            assert codes.dtype == (torch.int8 if low < 0 else torch.uint8)
            scale = spread_scales(form.scale, quantizer.granularity)
            zero_point = spread_scales(form.zero_point, quantizer.granularity)
            minimum = np.float32(0)
            if form.minimum is not None:
                minimum = spread_scales(form.minimum, quantizer.granularity)
            rounded = np.rint((x.numpy() + minimum) / scale).astype(np.int64)
            expected = np.clip(rounded + zero_point, low, high)
            assert np.array_equal(codes.numpy(), expected)
            values = (expected - zero_point).astype(np.float32) * scale - minimum
            assert np.array_equal(quantizer(x).detach().numpy(), values)
            if form.minimum is None:
                assert not quantizer(torch.zeros_like(x)).any(), "0 is on the grid"

    def test_codes_and_moved_codes_mean_the_values_of_the_forward(self, kind: str, spec: str) -> None:
        for granularity in self.granularities(kind):
            quantizer = self.make(kind, spec, granularity)
            x = self.data(quantizer)
            values, codes, form = quantizer(x).detach(), quantizer.codes(x), quantizer.affine()
            assert torch.equal(form.values(codes), values)
            moved = form.shifted(-form.quant_min)
            shifted = (codes.int() - form.quant_min).to(torch.uint8)
            assert torch.equal(moved.values(shifted), values)

    def test_groups_are_the_channels_of_the_weight_cut_at_them(self, kind: str, spec: str) -> None:
        if kind != "weight":
            return  # groups are of weights
        groups = self.make(kind, spec, GROUPS[0])
        point = QuantizationPoint("a.b", "weight", (), (6, 10), Granularity(0), spec=self.SPECS[spec])
        rows = make_quantizer(point)
        form = groups.affine()
        scale, zero_point = form.scale.numpy().reshape(-1), form.zero_point.numpy().reshape(-1)
        minimum = None if form.minimum is None else form.minimum.numpy().reshape(-1)
        rows.set_range(4, QuantizerRange(scale, zero_point, groups.signed, minimum=minimum))
        with torch.no_grad():
            groups.scale.copy_(rows.scale.reshape(groups.scale.shape))  # a logarithm of a value read back
        x = self.data(groups)
        assert groups.gradient_scale(x) == rows.gradient_scale(x.reshape(6, 10))
        upstream = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
        of_groups = []
        for is_derived_again in (False, True):
            grads = []
            for quantizer, value in ((groups, x), (rows, x.reshape(6, 10))):
                leaf = value.clone().requires_grad_()
                y = quantizer(leaf)
                inputs, above = (leaf, quantizer.scale), upstream.reshape(y.shape)
                grads.append([y, *torch.autograd.grad(y, inputs, above, create_graph=is_derived_again)])
            for ours, theirs in zip(*grads, strict=True):
                assert torch.equal(ours.reshape(-1), theirs.reshape(-1))
            of_groups.append(grads[0])
        for fast, slow in zip(*of_groups, strict=True):
            torch.testing.assert_close(fast, slow)

    def test_a_short_last_group_learns_from_its_own_elements_alone(self, kind: str, spec: str) -> None:
        if kind != "weight":
            return  # groups are of weights
        quantizer = self.make(kind, spec, GROUPS[2])
        x = self.data(quantizer)
        (gradient,) = torch.autograd.grad(quantizer(x).sum(), quantizer.scale)
        last = self.make(kind, spec, Granularity(1))
        with torch.no_grad():
            last.scale.copy_(quantizer.scale[..., 2:])
        if isinstance(last.zero_point, Tensor) and isinstance(quantizer.zero_point, Tensor):
            last.zero_point.copy_(quantizer.zero_point[..., 2:])
        if last.minimum is not None and quantizer.minimum is not None:
            last.minimum.copy_(quantizer.minimum[..., 2:])
        (expected,) = torch.autograd.grad(last(x[..., 4:]).sum(), last.scale)
        # The two count another number of elements: 6 a full group, 3 here.
        torch.testing.assert_close(gradient[..., 2:] * 6**0.5, expected * 3**0.5)

    def test_a_latent_weight_of_groups_rounds_to_its_codes(self, kind: str, spec: str) -> None:
        if kind != "weight":
            return
        for granularity in GROUPS:
            quantizer = self.make(kind, spec, granularity)
            low, high = quantizer.levels
            dtype = np.int8 if quantizer.signed else np.uint8
            codes = np.random.default_rng(1).integers(low, high + 1, SHAPE).astype(dtype)
            for x in (self.data(quantizer), self.data(quantizer).bfloat16()):
                latent = latent_weight(x, quantizer, codes)
                assert latent.dtype == x.dtype
                assert np.array_equal(quantizer.codes(latent).numpy(), codes)
                assert torch.equal(latent_weight(x, quantizer, quantizer.codes(x).numpy()), x)

    def test_the_state_dict_goes_round_with_everything(self, kind: str, spec: str) -> None:
        granularity = GROUPS[0] if kind == "weight" else GRANULARITIES[1]
        source = self.make(kind, spec, granularity, bits=3).freeze()
        source.enabled = kind == "weight"
        target = make_quantizer(self.point(kind, spec, granularity))
        target.load_state_dict(copy.deepcopy(source.state_dict()))
        assert (target.num_bits, target.frozen, target.enabled) == (3, True, kind == "weight")
        assert not any(p.requires_grad for p in target.parameters())
        source.enabled = target.enabled = True
        x = self.data(source)
        assert torch.equal(target(x), source(x))
        assert torch.equal(target.codes(x), source.codes(x))

    def test_a_damaged_state_is_refused_and_nothing_taken(self, kind: str, spec: str) -> None:
        quantizer = self.make(kind, spec)
        before = str(quantizer.state_dict())
        for state in ([9, 0, 1, 0, 0], [4, -99, 1, 0, 0], [4, 0, 2, 0, 0], [4, 0]):
            with pytest.raises(StorageError, match=r"'a\.b'"):
                quantizer.set_extra_state(torch.tensor(state, dtype=torch.int32))
        assert str(quantizer.state_dict()) == before

    def test_a_range_that_does_not_fit_is_refused_and_nothing_taken(self, kind: str, spec: str) -> None:
        quantizer = self.make(kind, spec)
        before = str(quantizer.state_dict())
        for num_scales, zero_point in ((2, 0), (3, 999)):
            scale = np.ones(num_scales, np.float32)
            value = QuantizerRange(scale, np.full(num_scales, zero_point, np.int32), True)
            with pytest.raises(PlacementError, match=r"'a\.b' at 8 bits takes 3 scales and zero points of 0"):
                quantizer.set_range(8, value)
        assert str(quantizer.state_dict()) == before

    def test_it_learns_unless_it_is_frozen_and_gradients_can_be_derived(self, kind: str, spec: str) -> None:
        quantizer = self.make(kind, spec)
        parameters = [p for p, size in quantizer.learned() if size > 0]
        assert len(parameters) == len(list(quantizer.parameters()))
        x = self.data(quantizer).requires_grad_()
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

    def test_the_fast_gradients_are_the_differentiable_ones(self, kind: str, spec: str) -> None:
        quantizer = self.make(kind, spec, PER_TENSOR)
        low, high = quantizer.levels
        with torch.no_grad():
            quantizer.scale.fill_(0.5 if not quantizer.logarithmic else -0.75)
        step = float(quantizer.effective_scale().detach())
        # All ties, those beyond both ends too.
        x = (torch.arange(2 * low - 2 * high - 4, 4 * high + 5) / 2 * step).requires_grad_()
        y = quantizer(x)
        upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        fast = torch.autograd.grad(y, (x, quantizer.scale), upstream, retain_graph=True)
        slow = torch.autograd.grad(y, (x, quantizer.scale), upstream, create_graph=True)
        assert torch.equal(fast[0], slow[0])
        torch.testing.assert_close(fast[1], slow[1])

    def test_a_captured_program_with_an_open_batch_is_bit_equal(self, kind: str, spec: str) -> None:
        if kind == "weight":
            return  # a weight has no batch
        for granularity in GRANULARITIES[:2]:
            layer = Layer(self.make(kind, spec, granularity))
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # torch's own, while it exports
                batches = ({0: torch.export.Dim("batch")},)
                program = torch.export.export(layer, (self.data(layer.quantizer),), dynamic_shapes=batches)
                for size in (2, 6, 9):
                    other = torch.randn(size, *SHAPE)
                    assert torch.equal(program.module()(other), layer(other))

    @pytest.mark.slow
    def test_compile_takes_the_full_graph_with_equal_values_and_gradients(self, kind: str, spec: str) -> None:
        layer = Layer(self.make(kind, spec))
        x = self.data(layer.quantizer).requires_grad_()
        torch.compiler.reset()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, while it compiles
            compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
            inputs = (x, *layer.quantizer.parameters())
            ours = torch.autograd.grad(compiled(x).square().sum(), inputs)
            assert torch.equal(compiled(x), layer(x))
        theirs = torch.autograd.grad(layer(x).square().sum(), inputs)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)
