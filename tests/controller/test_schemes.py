"""Weights whose scheme has groups or zero points: quantizers change with it, and everything follows."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from raysearch.calibration import calibrate_model
from raysearch.controller import QuantizationController, create_controller, stripped_weights
from raysearch.quantizer import AsymmetricQuantizer, SymmetricQuantizer, point_levels
from raysearch.records import (
    BitAssignment,
    QuantizationPoint,
    QuantizerGroup,
    QuantizerRange,
    QuantizerSetup,
    RangeTable,
    Scheme,
)
from raysearch.simulation.weight_cache import DeployedWeights
from tests.support import model_zoo
from tests.support.quantized_models import placed, run

# Each fits one weight of the net: its own mode, groups of 2 and 4 channels, and of 2 with 9 positions each.
SCHEMES = (Scheme(8), Scheme.of("2a"), Scheme.of("3g2a"), Scheme.of("4g18"), Scheme.of("4g4"))
NET = "digits"


@cache
def setup_and_ranges() -> tuple[QuantizerSetup, RangeTable]:
    """A net whose weights may take every one of `SCHEMES`, calibrated."""
    plain = placed(NET)
    groups = {}
    for group in plain.groups.values():
        of_weights = plain.group_kind(group.id) == "weight"
        groups[group.id] = QuantizerGroup(group.id, group.points, sorted(SCHEMES) if of_weights else (8,))
    setup = QuantizerSetup(plain.points, groups)
    return setup, calibrate_model(model_zoo.build(NET), setup, [model_zoo.inputs(NET)[0]])


def mixed(shift: int = 0) -> BitAssignment:
    """Every scheme in turn."""
    setup, _ = setup_and_ranges()
    chosen: dict[str, Scheme] = {}
    for group in setup.groups.values():
        of_weights = [name for name in setup.groups if setup.group_kind(name) == "weight"]
        place = of_weights.index(group.id) + shift if group.id in of_weights else 0
        chosen[group.id] = SCHEMES[place % len(SCHEMES)]
    return BitAssignment(chosen)


def build(assignment: BitAssignment, ranges: RangeTable | None = None) -> QuantizationController:
    setup, calibrated = setup_and_ranges()
    return create_controller(model_zoo.build(NET), setup, ranges or calibrated, assignment)


def weights_of(controller: QuantizationController) -> dict[str, Tensor]:
    parts = controller.weight_quantizers
    return {n: getattr(part.module, part.sites[0].name).detach() for n, part in parts.items()}


def output(model: nn.Module) -> Tensor:
    return run(model, model_zoo.inputs(NET))


def chosen_codes() -> RangeTable:
    """Codes that no rounding to nearest gives, of every weight at every scheme."""
    setup, ranges = setup_and_ranges()
    rng = np.random.default_rng(0)
    rounded: dict[tuple[str, Scheme], QuantizerRange] = {}
    for name in setup.of_kind("weight"):
        for scheme in SCHEMES:
            value = ranges[name, scheme]
            low = 1 - 2 ** (scheme.num_bits - 1) if value.signed else 0
            dtype = np.int8 if value.signed else np.uint8
            high = low + 2**scheme.num_bits - 2
            codes = rng.integers(low, high + 1, setup.points[name].shape).astype(dtype)
            rounded[name, scheme] = QuantizerRange(value.scale, value.zero_point, value.signed, codes)
    return RangeTable(ranges.ranges, rounded)


def spread(values: np.ndarray, point: QuantizationPoint) -> np.ndarray:
    """One value a scale as one an element, by numpy."""
    sizes = point.granularity.scale_shape(point.shape)
    spread_values = values.reshape(sizes)
    for axis, size in enumerate(point.shape):
        spread_values = np.repeat(spread_values, size // sizes[axis], axis)
    return spread_values


def test_weights_are_the_integer_arithmetic_of_their_schemes() -> None:
    setup, ranges = setup_and_ranges()
    schemes = mixed().per_point(setup)
    floats = {name: model_zoo.build(NET).get_parameter(name) for name in setup.of_kind("weight")}
    deployed = DeployedWeights(floats, setup, ranges)
    quantized = weights_of(build(mixed()))
    assert {str(schemes[name]) for name in quantized} == set(map(str, SCHEMES))
    kinds = set()
    for name, weight in quantized.items():
        value, point = ranges[name, schemes[name]], setup.points[name].at(schemes[name])
        kinds.add(point.granularity.kind)
        low, high = point_levels(point, schemes[name].num_bits)
        step, zero = spread(value.scale, point), spread(value.zero_point, point)
        codes = np.clip(np.rint(floats[name].detach().numpy() / step) + zero, low, high)
        assert np.array_equal(weight.numpy(), (codes - zero).astype(np.float32) * step)
        assert torch.equal(deployed.make(name, schemes[name]), weight)
    assert kinds == {"per_channel", "per_group"}


def test_apply_changes_granularity_and_mode_there_and_back() -> None:
    setup, _ = setup_and_ranges()
    controller = build(mixed())
    first = output(controller.model)
    model, name = controller.model, next(iter(setup.of_kind("weight")))
    for shift in (1, 2, 3, 4, 0):
        controller.apply(mixed(shift))
        fresh = build(mixed(shift))
        assert torch.equal(output(model), output(fresh.model))
        assert [p.shape for p in model.parameters()] == [p.shape for p in fresh.model.parameters()]
        quantizer = controller.weight_quantizers[name].quantizer
        assert quantizer is controller.all_quantizations[name]
        is_asymmetric = mixed(shift).per_point(setup)[name].is_asymmetric
        assert isinstance(quantizer, AsymmetricQuantizer if is_asymmetric else SymmetricQuantizer)
        assert controller.compression_stage().name == "FULLY_COMPRESSED"
    assert torch.equal(output(model), first)


def test_a_frozen_range_and_a_switch_outlast_a_change_of_scheme() -> None:
    controller = build(mixed())
    names = list(controller.weight_quantizers)
    controller.all_quantizations[names[0]].scale.requires_grad_(False)
    controller.apply(mixed(2))
    assert controller.frozen_ranges() == names[:1]
    assert not controller.all_quantizations[names[0]].scale.requires_grad
    assert controller.all_quantizations[names[1]].scale.requires_grad
    rest = {group: scheme for group, scheme in mixed(1).schemes.items() if group != names[1]}
    controller.apply(BitAssignment(rest))
    assert not controller.all_quantizations[names[1]].enabled
    assert torch.equal(output(controller.model), output(build(BitAssignment(rest)).model))


def test_the_state_holds_the_scales_that_rounding_chose() -> None:
    table = chosen_codes()
    rounded = {option: replace(value, scale=value.scale * 0.8) for option, value in table.rounded.items()}
    source = build(mixed(1), RangeTable(table.ranges, rounded))
    fresh = build(mixed(1))
    fresh.model.load_state_dict(source.model.state_dict())
    fresh.load_state(json.loads(json.dumps(source.get_compression_state())))
    fresh.apply(fresh.assignment)
    assert torch.equal(output(fresh.model), output(source.model))


def test_the_state_holds_schemes_and_learned_scales_of_groups() -> None:
    source = build(mixed(1))
    with torch.no_grad():
        for quantizer in source.all_quantizations.values():
            quantizer.scale.mul_(1.25)
    state = json.loads(json.dumps(source.get_compression_state()))
    values = copy.deepcopy(source.model.state_dict())
    for first in ("state", "values"):
        # Values fit where the schemes are those of the state already.
        fresh = build(mixed(3 if first == "state" else 1))
        if first == "values":
            fresh.model.load_state_dict(values)
        fresh.load_state(state)
        if first == "state":
            fresh.model.load_state_dict(values)
        assert fresh.assignment == source.assignment
        assert torch.equal(output(fresh.model), output(source.model))


def test_strip_gives_codes_scales_and_zero_points_of_groups() -> None:
    setup, _ = setup_and_ranges()
    for table in (None, chosen_codes()):
        controller = build(mixed(), table)
        before = output(controller.model)
        stripped = controller.strip_model(do_copy=True)
        assert torch.equal(output(stripped), before)
        for name, weight in stripped_weights(stripped, setup).items():
            scheme = mixed().per_point(setup)[name]
            point = setup.points[name].at(scheme)
            assert weight.granularity == point.granularity
            assert weight.scale.shape == point.granularity.scale_shape(point.shape)
            assert weight.symmetric == (not scheme.is_asymmetric)
            assert (weight.zero_point is not None) == scheme.is_asymmetric
            if table is not None:
                codes = table[name, scheme].codes
                assert codes is not None
                shift = 0 if codes.dtype == np.int8 else 2 ** (scheme.num_bits - 1)
                assert np.array_equal(weight.codes.numpy().astype(int) + shift, codes)


def test_scales_of_groups_learn_from_where_the_codes_of_the_table_are() -> None:
    controller = build(mixed(), chosen_codes())
    scales = [part.quantizer.scale for part in controller.weight_quantizers.values()]
    before = [scale.detach().clone() for scale in scales]
    optimizer = torch.optim.SGD(scales, lr=1e-3)
    inputs = model_zoo.inputs(NET)
    losses = []
    for _ in range(5):
        loss = model_zoo.output(controller.model(*inputs)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    for old, scale in zip(before, scales, strict=True):
        assert scale.grad is not None
        assert scale.grad.shape == scale.shape
        assert not torch.equal(old, scale)


def test_statistics_tell_the_schemes() -> None:
    statistics = build(mixed()).statistics()
    assert statistics["weight_schemes"] == {"2a": 1, "3g2a": 1, "4g18": 1, "4g4": 1, "8": 1}
    assert statistics["weight_quantizers"]["asymmetric"] == 2
    assert statistics["weight_quantizers"]["per_group"] == 3
    assert "4g18" in str(statistics)


def test_manual_reads_the_schemes_that_it_writes() -> None:
    controller = build(mixed())
    entries = json.loads(json.dumps(controller.bitwidth_per_scope()))
    assert ["3g2a", "block.pointwise.weight|WEIGHT"] in entries
    controller.apply(mixed(1))
    assert controller.init_precision("manual", {"bitwidth_per_scope": entries}) == mixed()
