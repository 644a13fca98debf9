import copy
import pickle
import warnings
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from raysearch.controller import stripped_quantizers, stripped_weights
from raysearch.errors import PlacementError
from raysearch.quantizer import quant_levels
from tests.support import model_zoo
from tests.support.quantized_models import WIDTHS, assign, quantized, run

FORMS: tuple[Literal["integer", "float"], ...] = ("integer", "float")


@pytest.mark.parametrize("name", model_zoo.NETS)
def test_strip_equals_the_trained_model_bit_for_bit_at_every_width(name: str) -> None:
    q = quantized(name)
    for bits in (*WIDTHS, None):
        q.controller.apply(assign(q.setup, bits))
        expected = run(q.model, q.inputs)
        for form in FORMS:
            stripped = q.controller.strip_model(do_copy=True, form=form)
            assert torch.equal(run(stripped, q.inputs), expected), (bits, form)
            assert torch.equal(run(q.model, q.inputs), expected)


@pytest.mark.parametrize("name", model_zoo.NETS)
def test_the_integer_form_holds_codes_in_range_and_no_float_weight(name: str) -> None:
    q = quantized(name, None)
    stripped = q.controller.strip_model(do_copy=True)
    weights = stripped_weights(stripped, q.setup)
    assert list(weights) == list(q.setup.of_kind("weight"))
    sizes = {p.shape for p in q.setup.of_kind("weight").values()}
    for value in stripped.state_dict().values():
        assert not (value.is_floating_point() and tuple(value.shape) in sizes)
    for key, weight in weights.items():
        low, high = quant_levels(weight.num_bits, signed=True)
        assert weight.codes.dtype == torch.int8
        assert low <= int(weight.codes.min()) <= int(weight.codes.max()) <= high
        assert weight.num_bits == q.controller.all_quantizations[key].num_bits
        assert tuple(weight.codes.shape) == q.setup.points[key].shape
    assert not any(p.requires_grad for p in stripped.parameters())
    assert not any(m.training for m in stripped.modules())
    assert list(stripped_quantizers(stripped, q.setup)) == list(q.setup.of_kind("activation"))


@pytest.mark.parametrize("name", model_zoo.NETS)
def test_the_float_form_is_plain_pickles_and_exports(name: str) -> None:
    q = quantized(name, None)
    stripped = q.controller.strip_model(do_copy=True, form="float")
    assert not any(parametrize.is_parametrized(m) for m in stripped.modules())
    assert [type(m) for m in stripped.modules() if "uantizer" not in type(m).__name__] == [
        type(m) for m in model_zoo.build(name).modules()
    ]
    expected = run(q.model, q.inputs)
    assert torch.equal(run(pickle.loads(pickle.dumps(stripped)), q.inputs), expected)
    for point in q.setup.of_kind("weight").values():
        weight, quantizer = stripped.get_parameter(point.id), q.controller.all_quantizations[point.id]
        codes = (weight / quantizer.effective_scale()).round()
        assert torch.equal(codes * quantizer.effective_scale(), weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, while it exports
        program = torch.export.export(stripped, q.inputs, strict=False)
    assert torch.equal(run(program.module(), q.inputs), expected)


def train_a_step(model: nn.Module, name: str) -> Tensor:
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    loss = model_zoo.output(model(*model_zoo.inputs(name))).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    model.eval()
    return loss.detach()


@pytest.mark.parametrize("name", model_zoo.NETS)
def test_after_a_stripped_copy_the_original_still_trains_and_strips(name: str) -> None:
    q = quantized(name)
    before = run(q.model, q.inputs)
    first = q.controller.strip_model(do_copy=True)
    train_a_step(q.model, name)
    assert torch.equal(run(first, q.inputs), before)
    after = run(q.model, q.inputs)
    assert not torch.equal(after, before)
    assert torch.equal(run(q.controller.strip_model(do_copy=True), q.inputs), after)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["digits", "tied", "encoder", "sequential_residual"])
def test_in_place_changes_and_hands_back_the_model_itself(
    name: str, form: Literal["integer", "float"]
) -> None:
    q = quantized(name)
    expected = run(q.model, q.inputs)
    stripped = q.controller.strip_model(form=form)
    assert stripped is q.model
    assert torch.equal(run(stripped, q.inputs), expected)


@pytest.mark.parametrize("name", model_zoo.NETS)
def test_a_deep_copy_of_a_quantized_model_is_independent(name: str) -> None:
    q = quantized(name)
    twin = copy.deepcopy(q.model)
    expected = run(q.model, q.inputs)
    assert torch.equal(run(twin, q.inputs), expected)
    ours = {id(t) for t in (*q.model.parameters(), *q.model.buffers(), *q.model.modules())}
    theirs = {id(t) for t in (*twin.parameters(), *twin.buffers(), *twin.modules())}
    assert not ours & theirs
    train_a_step(twin, name)
    assert torch.equal(run(q.model, q.inputs), expected)
    moved = run(twin, q.inputs)
    assert not torch.equal(moved, expected)
    # Stripping one in place must not reach the class that the other shares with it.
    q.controller.strip_model()
    assert torch.equal(run(q.model, q.inputs), expected)
    assert torch.equal(run(twin, q.inputs), moved)


def test_a_tied_weight_stays_one_tensor() -> None:
    q = quantized("tied")
    integer = q.controller.strip_model(do_copy=True)
    weight = stripped_weights(integer, q.setup)["table.weight"]
    assert weight.aliases == ("head.weight",)
    assert integer.get_submodule("head").parametrizations.weight.original is weight.codes  # type: ignore[union-attr]
    plain = q.controller.strip_model(do_copy=True, form="float")
    assert plain.get_parameter("head.weight") is plain.get_parameter("table.weight")


@pytest.mark.parametrize("form", FORMS)
def test_disabled_groups_keep_their_float_values(form: Literal["integer", "float"]) -> None:
    q = quantized("digits", 3, left_out=["down.weight", "head.input"])
    stripped = q.controller.strip_model(do_copy=True, form=form)
    assert torch.equal(run(stripped, q.inputs), run(q.model, q.inputs))
    assert torch.equal(
        stripped.get_parameter("down.weight"), model_zoo.build("digits").get_parameter("down.weight")
    )
    assert "down.weight" not in stripped_weights(stripped, q.setup)
    assert "head.input" not in stripped_quantizers(stripped, q.setup)


def test_a_scale_below_zero_is_stripped_as_the_forward_reads_it() -> None:
    q = quantized("digits")
    with torch.no_grad():
        for quantizer in q.controller.all_quantizations.values():
            quantizer.scale.neg_()
        q.controller.all_quantizations["stem.weight"].scale[0].zero_()
    expected = run(q.model, q.inputs)
    for form in FORMS:
        stripped = q.controller.strip_model(do_copy=True, form=form)
        assert torch.equal(run(stripped, q.inputs), expected)
    weights = stripped_weights(q.controller.strip_model(do_copy=True), q.setup)
    assert all(bool((w.scale > 0).all()) for w in weights.values())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("do_copy", [True, False])
def test_strip_twice_is_refused_and_changes_nothing(form: Literal["integer", "float"], do_copy: bool) -> None:
    q = quantized("digits")
    expected = run(q.controller.strip_model(form=form), q.inputs)
    with pytest.raises(PlacementError, match=r"'stem.weight' has no weight quantizer: .*stripped before"):
        q.controller.strip_model(do_copy=do_copy)
    assert torch.equal(run(q.model, q.inputs), expected)


def test_a_model_that_lost_a_quantizer_is_refused_whole() -> None:
    q = quantized("digits")
    parametrize.remove_parametrizations(q.model.get_submodule("head"), "weight")
    with pytest.raises(PlacementError, match=r"'head.weight' has no weight quantizer"):
        q.controller.strip_model()
    assert parametrize.is_parametrized(q.model.get_submodule("stem"))


def test_a_foreign_model_is_refused() -> None:
    q = quantized("digits")
    for foreign in (model_zoo.build("digits"), quantized("digits").model, copy.deepcopy(q.model)):
        with pytest.raises(PlacementError, match="a Digits that this controller was not created for"):
            q.controller.strip_model(foreign)


def test_a_wrapper_is_taken_off_and_a_submodule_named_module_is_not() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    q = quantized("digits")
    assert q.controller.strip_model(Wrapper(q.model), do_copy=True) is not q.model
    compiled = torch.compile(q.model, backend="eager")
    assert q.controller.strip_model(compiled, do_copy=True) is not q.model  # type: ignore[arg-type]
    q.model.add_module("module", nn.Identity())
    assert q.controller.strip_model(q.model) is q.model


def test_a_stripped_model_can_be_copied() -> None:
    q = quantized("encoder")
    for form in FORMS:
        stripped = q.controller.strip_model(do_copy=True, form=form)
        assert torch.equal(run(copy.deepcopy(stripped), q.inputs), run(q.model, q.inputs))
