"""Strip and export of weights whose quantizers are not the default ones."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from raysearch.config import PlacementConfig
from raysearch.controller import stripped_weights
from raysearch.controller.stripped import strip
from raysearch.hooks import attach_activation, attach_weight
from raysearch.placement import place_quantizers
from raysearch.quantizer import make_quantizer, point_levels
from raysearch.records import PER_TENSOR, Granularity, QuantizerRange, QuantizerSetup, QuantizerSpec
from tests.support import model_zoo
from tests.support.quantized_models import WIDTHS, run

SPECS = {
    "asymmetric": QuantizerSpec("asymmetric"),
    "asymmetric half": QuantizerSpec("asymmetric", half_range=True),
    "unsigned": QuantizerSpec(signed=False),
    "signed": QuantizerSpec(signed=True),
    "log": QuantizerSpec(signed=True, logarithm_scale=True),
}


def build(spec: QuantizerSpec, granularity: Granularity) -> tuple[nn.Module, QuantizerSetup]:
    model, inputs = model_zoo.build("digits"), model_zoo.inputs("digits")
    placed = place_quantizers(
        model, inputs, PlacementConfig(weight_bit_widths=WIDTHS, activation_bit_widths=WIDTHS)
    )
    points = {
        name: replace(p, spec=spec, granularity=granularity if p.kind == "weight" else PER_TENSOR)
        for name, p in placed.points.items()
    }
    setup = replace(placed, points=points)
    made = {name: make_quantizer(p) for name, p in points.items()}
    for index, (name, point) in enumerate(points.items()):
        bits = WIDTHS[1:][index % 6]
        low, high = point_levels(point, bits)
        rng = np.random.default_rng(index)
        zero = rng.integers(low, high + 1, point.num_scales) if spec.mode == "asymmetric" else 0
        scale = rng.uniform(0.5, 1, point.num_scales) / (high - low)
        zero_point = np.broadcast_to(zero, scale.shape).astype(np.int32)
        made[name].set_range(bits, QuantizerRange(scale.astype(np.float32), zero_point, low < 0))
    attach_activation(model, setup, {name: made[name] for name in setup.of_kind("activation")})
    for name, point in setup.of_kind("weight").items():
        attach_weight(model, point, made[name])
    return model.eval(), setup


@pytest.mark.parametrize("form", ["integer", "float"])
@pytest.mark.parametrize(
    "granularity", [Granularity(0), Granularity(1), Granularity.per_group(3), PER_TENSOR], ids=str
)
@pytest.mark.parametrize("spec", SPECS)
def test_strip_is_bit_equal(spec: str, granularity: Granularity, form: Literal["integer", "float"]) -> None:
    model, setup = build(SPECS[spec], granularity)
    inputs = model_zoo.inputs("digits")
    expected = run(model, inputs)
    stripped = strip(model, setup, do_copy=True, form=form)
    assert torch.equal(run(stripped, inputs), expected)
    assert torch.equal(run(model, inputs), expected)
    for weight in stripped_weights(stripped, setup).values():
        assert weight.codes.dtype == torch.int8
        assert weight.granularity == granularity
        half = 2 ** (weight.num_bits - 1)
        assert -half <= int(weight.codes.min()) <= int(weight.codes.max()) < half
        assert (weight.zero_point is None) == ("signed" in spec.split() or spec == "log")
