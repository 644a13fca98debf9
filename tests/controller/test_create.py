import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from raysearch.config import PlacementConfig
from raysearch.controller import create_controller
from raysearch.errors import PlacementError
from raysearch.hooks import attach_activation, detach_all
from raysearch.placement import place_quantizers
from raysearch.quantizer import AsymmetricQuantizer, Quantizer, SymmetricQuantizer
from raysearch.records import BitAssignment, QuantizerSetup, RangeTable
from tests.support import model_zoo
from tests.support.quantized_models import Quantized, assign, make_ranges, quantized, run


def test_quantizers_are_held_by_id_weights_first_with_their_widths() -> None:
    q = quantized("digits", None)
    held = q.controller.all_quantizations
    assert list(held) == list(q.setup.points)
    widths = q.assignment.per_point(q.setup)
    assert {name: quantizer.num_bits for name, quantizer in held.items()} == widths
    kinds = {"weight": SymmetricQuantizer, "activation": AsymmetricQuantizer}
    assert all(isinstance(held[p.id], kinds[p.kind]) for p in q.setup.points.values())
    assert q.controller.assignment == q.assignment


@pytest.mark.parametrize("name", model_zoo.NETS)
def test_the_forward_is_that_of_a_model_with_quantized_weights_and_taps(name: str) -> None:
    """Weights alone are compared with weights rounded by hand; activations must change the output more."""
    model, example = model_zoo.build(name), model_zoo.inputs(name)
    q = quantized(name, 3)
    q.controller.disable_activation_quantization()
    for point in q.setup.of_kind("weight").values():
        parameter = model.get_parameter(point.id)
        step = q.controller.all_quantizations[point.id].scale.detach()
        with torch.no_grad():
            parameter.copy_((parameter / step).round().clamp(-4, 3) * step)
    expected = run(model, example)
    torch.testing.assert_close(run(q.model, example), expected, rtol=1e-5, atol=1e-6)
    q.controller.enable_activation_quantization()
    assert not torch.allclose(run(q.model, example), expected)


@pytest.mark.parametrize("name", model_zoo.NETS)
def test_all_disabled_is_the_float_model(name: str) -> None:
    q = quantized(name)
    q.controller.apply(BitAssignment({}))
    expected = run(model_zoo.build(name), q.inputs)
    torch.testing.assert_close(run(q.model, q.inputs), expected, rtol=1e-6, atol=1e-6)
    assert not any(x.enabled or x.scale.requires_grad for x in q.controller.all_quantizations.values())


@pytest.mark.parametrize("name", model_zoo.NETS)
def test_every_activation_quantizer_runs(name: str) -> None:
    """A tap that is counted wrongly would stay silent: each point must see a tensor of its own size."""
    q = quantized(name)
    seen: dict[str, int] = {}
    for point in q.setup.of_kind("activation"):
        module = q.controller.all_quantizations[point]
        module.register_forward_hook(
            lambda m, args, out, point=point: seen.update({point: max(seen.get(point, 0), args[0].numel())})
        )
    for batch in (3, 1, 6):
        seen.clear()
        run(q.model, model_zoo.inputs(name, batch))
        assert seen == {p.id: batch * p.num_elements for p in q.setup.of_kind("activation").values()}


def test_a_group_that_is_left_out_stays_float() -> None:
    q = quantized("digits", 2, left_out=["block.depthwise.weight", "down.input"])
    held = q.controller.all_quantizations
    off = {name for name, quantizer in held.items() if not quantizer.enabled}
    assert off == {"block.depthwise.weight", "down.input"}
    assert not any(held[name].scale.requires_grad for name in off)
    weight = q.model.get_submodule("block.depthwise").weight
    assert torch.equal(weight, model_zoo.build("digits").get_parameter("block.depthwise.weight"))


def test_the_switches_turn_one_kind_off_and_on_within_the_assignment() -> None:
    q = quantized("digits", 4, left_out=["stem.weight"])
    controller = q.controller

    def on(kind: str) -> set[str]:
        every = controller.all_quantizations.items()
        assert all(x.enabled == x.scale.requires_grad for _, x in every)
        return {n for n, x in every if x.enabled and q.setup.points[n].kind == kind}

    weights, activations = on("weight"), on("activation")
    assert weights == set(q.setup.of_kind("weight")) - {"stem.weight"}
    controller.disable_weight_quantization()
    assert (on("weight"), on("activation")) == (set(), activations)
    controller.disable_activation_quantization()
    assert on("activation") == set()
    controller.enable_weight_quantization()
    controller.enable_activation_quantization()
    assert (on("weight"), on("activation")) == (weights, activations)


def test_apply_again_sets_widths_and_calibrated_ranges() -> None:
    q, fresh = quantized("digits", 2), quantized("digits", 6)
    with torch.no_grad():
        for quantizer in q.controller.all_quantizations.values():
            quantizer.scale.mul_(3)
    q.controller.apply(assign(q.setup, 6))
    assert torch.equal(run(q.model, q.inputs), run(fresh.model, fresh.inputs))


def test_statistics_count_enabled_quantizers() -> None:
    found = quantized("digits", 4, left_out=["stem.weight"]).controller.statistics()
    assert found["weight_bit_widths"] == {4: 4}
    assert found["activation_bit_widths"] == {4: 6}
    assert (found["num_weight_quantizers"], found["num_activation_quantizers"]) == (5, 6)
    assert found["num_enabled"] == 10
    assert found["costs"]["act_bits"] == 4


def parts(name: str = "digits") -> tuple[nn.Module, QuantizerSetup, RangeTable, BitAssignment]:
    model = model_zoo.build(name)
    setup = place_quantizers(model, model_zoo.inputs(name), PlacementConfig(weight_bit_widths=(4, 8)))
    chosen = {g.id: g.bit_widths[0] for g in setup.groups.values()}
    return model, setup, make_ranges(model, setup), BitAssignment(chosen)


def _unknown_group(setup: QuantizerSetup, ranges: RangeTable, bits: dict[str, int]) -> Any:
    return setup, ranges, {**bits, "nowhere.weight": 4}


def _wrong_width(setup: QuantizerSetup, ranges: RangeTable, bits: dict[str, int]) -> Any:
    return setup, ranges, {**bits, "head.weight": 5}


def _no_range(setup: QuantizerSetup, ranges: RangeTable, bits: dict[str, int]) -> Any:
    rest = {key: value for key, value in ranges.ranges.items() if key != ("head.input", 8)}
    return setup, RangeTable(rest), bits


def _range_of_another_model(setup: QuantizerSetup, ranges: RangeTable, bits: dict[str, int]) -> Any:
    other = {**ranges.ranges, ("head.weight", 4): ranges["stem.weight", 4]}
    return setup, RangeTable(other), bits


def _another_shape(setup: QuantizerSetup, ranges: RangeTable, bits: dict[str, int]) -> Any:
    changed = replace(setup.points["head.weight"], shape=(10, 9))
    return QuantizerSetup({**setup.points, "head.weight": changed}, setup.groups), ranges, bits


def _another_module(setup: QuantizerSetup, ranges: RangeTable, bits: dict[str, int]) -> Any:
    point = setup.points["head.input"]
    changed = replace(point, sites=(replace(point.sites[0], module="tail"),))
    return QuantizerSetup({**setup.points, "head.input": changed}, setup.groups), ranges, bits


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_unknown_group, "'nowhere.weight', which is no group"),
        (_wrong_width, "'head.weight' 5 bits; allowed: 4, 8"),
        (_no_range, "no calibrated range for 'head.input' at 8 bits"),
        (_range_of_another_model, "'head.weight' at 4 bits has 4 scales instead of 10"),
        (_another_shape, r"'head.weight' of shape \(10, 9\).*made for another model"),
        (_another_module, "the module 'tail', which this Digits lacks"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_model_changes(
    spoil: Callable[..., Any], message: str
) -> None:
    model, setup, ranges, assignment = parts()
    names, expected = list(model.state_dict()), run(model, model_zoo.inputs("digits"))
    setup, ranges, bits = spoil(setup, ranges, dict(assignment.bits))
    with pytest.raises(PlacementError, match=message):
        create_controller(model, setup, ranges, BitAssignment(bits))
    assert list(model.state_dict()) == names
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(parametrize.is_parametrized(m) for m in model.modules())
    assert torch.equal(run(model, model_zoo.inputs("digits")), expected)


def test_apply_changes_nothing_when_it_refuses() -> None:
    q = quantized("digits", 4)
    expected = run(q.model, q.inputs)
    with pytest.raises(PlacementError, match="which is no group"):
        q.controller.apply(BitAssignment({"stem.weight": 8, "nowhere": 8}))
    assert q.controller.assignment == q.assignment
    assert torch.equal(run(q.model, q.inputs), expected)


@pytest.mark.parametrize("only", ["weight", "activation"])
def test_a_quantized_model_is_not_quantized_again(only: str) -> None:
    q = quantized("digits")
    keep = q.setup.of_kind("weight" if only == "weight" else "activation")
    groups = {g.id: g for g in q.setup.groups.values() if g.points[0] in keep}
    before = list(q.model.state_dict())
    with pytest.raises(PlacementError, match="fresh copy"):
        create_controller(q.model, QuantizerSetup(keep, groups), q.ranges, BitAssignment({}))
    assert list(q.model.state_dict()) == before


@pytest.mark.parametrize("name", model_zoo.NETS)
def test_attached_observers_come_off_without_a_trace(name: str) -> None:
    class Observer(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Observer.calls += 1
            return x

    model, setup, _, _ = parts(name)
    names, layers = list(model.state_dict()), [n for n, _ in model.named_modules()]
    expected = run(model, model_zoo.inputs(name))
    handles = attach_activation(model, setup, {p: Observer() for p in setup.of_kind("activation")})
    # Close, not equal: torch's encoder layer takes another path in eval mode once it has a hook.
    torch.testing.assert_close(run(model, model_zoo.inputs(name)), expected)
    assert Observer.calls >= len(setup.of_kind("activation"))
    detach_all(model, setup, handles)
    assert [n for n, _ in model.named_modules()] == layers
    assert list(model.state_dict()) == names
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_quantizers_are_in_the_tree_once_even_under_a_container() -> None:
    q = quantized("sequential_residual")
    found = [m for m in q.model.modules() if isinstance(m, Quantizer)]
    assert len(found) == len(q.setup.points)
    layers = [type(m).__name__ for m in q.model.children()]
    assert layers == ["ParametrizedLinear", "SequentialResidual", "ParametrizedLinear"]
    assert len(q.model) == 3  # type: ignore[arg-type]


def test_quantizers_are_where_the_model_is() -> None:
    """Attaching moves the first layer's weight below a quantizer, which must not tell where the model is."""
    model, setup, ranges, assignment = parts()
    controller = create_controller(model.to("meta"), setup, ranges, assignment)
    assert {quantizer.device.type for quantizer in controller.all_quantizations.values()} == {"meta"}


def test_a_bfloat16_model_stays_bfloat16() -> None:
    model, setup, ranges, assignment = parts()
    controller = create_controller(model.to(torch.bfloat16), setup, ranges, assignment)
    x = model_zoo.inputs("digits")[0].to(torch.bfloat16)
    expected = run(model, (x,))
    assert expected.dtype == torch.bfloat16
    for form in ("integer", "float"):
        assert torch.equal(run(controller.strip_model(do_copy=True, form=form), (x,)), expected)  # type: ignore[arg-type]


def test_a_state_dict_goes_round_with_widths_zero_points_and_switches() -> None:
    source: Quantized = quantized("digits", None, left_out=["down.weight"])
    with torch.no_grad():
        for parameter in source.model.parameters():
            parameter.mul_(1.1)
    target = quantized("digits", 8)
    state = copy.deepcopy(source.model.state_dict())
    assert target.model.load_state_dict(state) == ([], [])
    assert torch.equal(run(target.model, source.inputs), run(source.model, source.inputs))
    stripped = target.controller.strip_model()
    assert torch.equal(run(stripped, source.inputs), run(source.model, source.inputs))
