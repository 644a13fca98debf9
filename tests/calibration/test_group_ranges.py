"""Ranges of weights with groups: each group gets what it would get as a weight of its own."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from raysearch.calibration import calibrate
from raysearch.calibration.weights import row_sizes, scale_rows
from raysearch.cluster.pool import LocalPool
from raysearch.config import CalibrationConfig
from raysearch.evaluation import Divergence, Replica, default_forward
from raysearch.quantizer import make_quantizer
from raysearch.records import (
    PER_TENSOR,
    Granularity,
    QuantizationPoint,
    QuantizerGroup,
    QuantizerRange,
    QuantizerSetup,
    QuantizerSpec,
    Site,
)

BITS = 3


class Layer(nn.Module):
    """A weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(weight)


def ranges_of(
    weight: Tensor, granularity: Granularity, spec: QuantizerSpec | None, estimator: str
) -> tuple[QuantizationPoint, QuantizerRange]:
    site = Site("", "parameter", "w")
    point = QuantizationPoint("w", "weight", (site,), tuple(weight.shape), granularity, spec=spec)
    setup = QuantizerSetup({"w": point}, {"w": QuantizerGroup("w", ("w",), (BITS,))})
    replica = Replica(Layer(weight), default_forward, {}, Divergence("mse"))
    table = calibrate(setup, LocalPool(replica), 0, CalibrationConfig(weights=estimator))  # type: ignore[arg-type]
    return point, table["w", BITS]


def groups_of(weight: Tensor, granularity: Granularity) -> list[Tensor]:
    """The elements of every scale, in the order of the scales, cut out one by one."""
    assert granularity.group_size is not None
    cuts = [[slice(None)]] * weight.ndim
    cuts[granularity.axis] = [slice(c, c + 1) for c in range(weight.shape[granularity.axis])]
    size = granularity.group_size
    starts = range(0, weight.shape[granularity.group_axis], size)
    cuts[granularity.group_axis] = [slice(start, start + size) for start in starts]
    return [weight[place].contiguous() for place in product(*cuts)]


@st.composite
def weights(draw: st.DrawFn) -> tuple[Tensor, Granularity]:
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=2, max_size=4)))
    axis, group_axis = draw(st.permutations(range(len(shape))))[:2]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    granularity = Granularity.per_group(draw(st.integers(1, 4)), axis, group_axis)
    return torch.randn(shape, generator=generator) + 0.3, granularity


@settings(max_examples=60, deadline=None)
@given(weights())
def test_rows_hold_the_elements_of_each_scale_and_zeros_behind(
    drawn: tuple[Tensor, Granularity],
) -> None:
    weight, granularity = drawn
    rows, sizes = scale_rows(weight, granularity), row_sizes(weight.shape, granularity)
    parts = groups_of(weight, granularity)
    assert len(rows) == len(sizes) == len(parts) == granularity.num_scales(weight.shape)
    for row, size, part in zip(rows, sizes, parts, strict=True):
        assert sorted(row[:size].tolist()) == sorted(part.reshape(-1).tolist())
        assert not row[size:].any()


@pytest.mark.parametrize("spec", [None, QuantizerSpec("asymmetric"), QuantizerSpec(signed=False)], ids=str)
@pytest.mark.parametrize("estimator", ["min_max", "mse", "percentile", "threesigma"])
@settings(max_examples=8, deadline=None)
@given(drawn=weights())
@pytest.mark.filterwarnings("ignore:the quantizer 'w' is unsigned")
def test_a_group_is_calibrated_as_a_weight_of_its_own(
    estimator: str, spec: QuantizerSpec | None, drawn: tuple[Tensor, Granularity]
) -> None:
    weight, granularity = drawn
    if estimator == "mse" and spec is not None and spec.signed is False:
        # Else one group's values may have a sign that others lack, and are then counted to find the range.
        weight = weight.abs()
    point, value = ranges_of(weight, granularity, spec, estimator)
    quantizer = make_quantizer(point)
    quantizer.set_range(BITS, value)
    assert not quantizer(torch.zeros(point.shape)).any()
    values = groups_of(quantizer(weight).detach(), granularity)
    for index, part in enumerate(groups_of(weight, granularity)):
        alone, expected = ranges_of(part, PER_TENSOR, spec, estimator)
        single = make_quantizer(alone)
        single.set_range(BITS, expected)
        if estimator == "mse":
            # Sums of squares in another order may prefer another clip by a hair.
            errors = [float((v - part).square().sum()) for v in (values[index], single(part).detach())]
            assert errors[0] == pytest.approx(errors[1], rel=1e-4, abs=1e-10)
            continue
        assert value.scale[index] == expected.scale[0]
        assert value.zero_point[index] == expected.zero_point[0]
        assert torch.equal(values[index], single(part))


def test_thousands_of_groups_take_one_pass_each() -> None:
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    for spec in (None, QuantizerSpec("asymmetric")):
        errors = []
        for estimator in ("min_max", "mse"):
            point, value = ranges_of(weight, Granularity.per_group(8), spec, estimator)
            assert value.scale.shape == (64 * 64,)
            quantizer = make_quantizer(point)
            quantizer.set_range(BITS, value)
            missed = (quantizer(weight).detach() - weight).double().square().reshape(-1, 8).sum(1)
            errors.append(missed)
        assert bool((errors[1] <= errors[0] * (1 + 1e-5) + 1e-12).all())
        assert float(errors[1].sum()) < 0.99 * float(errors[0].sum())
    assert np.all(np.isfinite(value.scale))
