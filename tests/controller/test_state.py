"""State out and in, statistics, the loss, manual widths, and a controller built by hand."""

import copy
import json

import pytest
import torch
from torch import nn

from raysearch.controller import (
    AdjacentGroups,
    NonWeightQuantizer,
    QuantizationController,
    WeightQuantizer,
    create_controller,
)
from raysearch.errors import ConfigError, PlacementError, StorageError, TrainingError
from raysearch.records import BitAssignment
from tests.support import model_zoo
from tests.support.quantized_models import assign, quantized, run


def test_state_is_json_and_restores_widths_in_any_order():
    q, fresh = quantized("digits", 4), quantized("digits", 8)
    with torch.no_grad():
        for quantizer in q.controller.all_quantizations.values():
            quantizer.scale.mul_(1.25)
    state = json.loads(json.dumps(q.controller.get_compression_state()))
    values = copy.deepcopy(q.model.state_dict())
    for order in ("state first", "values first"):
        fresh = quantized("digits", 8)
        if order == "state first":
            fresh.controller.load_state(state)
            fresh.model.load_state_dict(values)
        else:
            fresh.model.load_state_dict(values)
            fresh.controller.load_state(state)
        assert torch.equal(run(fresh.model, q.inputs), run(q.model, q.inputs))
        assert fresh.controller.assignment == q.assignment


def test_the_state_of_another_setup_names_the_quantizer():
    q, other = quantized("digits", 4), quantized("wave", 4)
    before = run(q.model, q.inputs)
    with pytest.raises(StorageError, match=r"the state has the quantizer 'conv\.weight', and"):
        q.controller.load_state(other.controller.get_compression_state())
    state = q.controller.get_compression_state()
    with pytest.raises(StorageError, match="version 9"):
        q.controller.load_state({**state, "version": 9})
    with pytest.raises(StorageError, match="lacks ranges"):
        q.controller.load_state({k: v for k, v in state.items() if k != "ranges"})
    assert torch.equal(run(q.model, q.inputs), before)


def test_d33_a_stage_that_differs_after_a_resume_is_told():
    q = quantized("digits", 4)
    state = {**q.controller.get_compression_state(), "compression_stage": "UNCOMPRESSED"}
    with pytest.warns(UserWarning, match="saved in the stage UNCOMPRESSED"):
        q.controller.load_state(state)


def test_d37_statistics_are_always_complete_and_print_as_a_table():
    q = quantized("digits", 4, left_out=["stem.weight"])
    full, quick = q.controller.statistics(), q.controller.statistics(quickly_collected_only=True)
    assert set(full) - set(quick) == {"memory", "quantized_edges"}
    assert full["weight_quantizers"]["per_channel"] == 5
    assert full["ratio_of_enabled_quantizations"] == pytest.approx(1000 / 11)
    assert 0 < full["quantized_edges"]["share_percent"] < 100
    float_bytes = sum(tensor.num_bytes for tensor in q.setup.stored)
    assert 0 < full["memory"]["weight_bytes"] + float_bytes < full["costs"]["size"]
    assert full["compression_ratio"] == q.controller.compression_rate
    text = str(full)
    assert "compression_ratio" in text
    assert len(text.splitlines()) > 20


def test_the_loss_is_a_differentiable_zero_by_default():
    q = quantized("digits", 4)
    value = q.controller.loss()
    value.backward()
    assert float(value.detach()) == 0


def test_distillation_compares_logits_and_blocks_and_copies_do_not():
    q, teacher = quantized("digits", 2), model_zoo.build("digits")
    hooks = len(q.model.block._forward_hooks)
    q.controller.distil(teacher, blocks=["block"], feature_weight=0.5)
    with pytest.raises(TrainingError, match="training mode"):
        q.controller.loss()
    q.model.train()
    q.model(*q.inputs)
    value = q.controller.loss()
    value.backward()
    assert float(value.detach()) > 0
    assert all(q.grad is not None for q in [q.controller.all_quantizations["stem.weight"].scale])
    assert not any(p.grad is not None for p in teacher.parameters())
    twin = copy.deepcopy(q.model)
    twin(*q.inputs)
    assert q.controller.loss() is value
    q.model.eval()
    q.controller.strip_model()
    assert len(q.model.block._forward_hooks) == hooks
    with pytest.raises(PlacementError, match="'nowhere'"):
        quantized("digits", 2).controller.distil(teacher, blocks=["nowhere"])


def test_manual_takes_our_names_and_those_of_nncf():
    q = quantized("digits", 8)
    entries = [
        [4, "Digits/Block[block]/Conv2d[depthwise]/conv2d_0|WEIGHT"],
        [2, "stem.weight|WEIGHT"],
        [5, "Digits/Linear[head]/linear_0|INPUT0"],
        [6, "down"],
    ]
    found = q.controller.init_precision("manual", {"bitwidth_per_scope": entries})
    assert q.controller.assignment == q.assignment
    changed = {k: v for k, v in found.bits.items() if v != 8}
    assert changed == {"stem.weight": 2, "block.depthwise.weight": 4, "down.weight": 6, "head.input": 5}
    q.controller.apply(found)
    again = q.controller.init_precision("manual", {"bitwidth_per_scope": q.controller.bitwidth_per_scope()})
    assert again == found


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ([[4, "nowhere"]], PlacementError, "fits no quantizer; the nearest is"),
        ([[9, "stem.weight"]], PlacementError, "'stem.weight'.*: .*has 9 bits; a bit-width is 2–8"),
        ([["4g64", "stem.weight"]], PlacementError, "'stem.weight' .* the scheme 4g64; admissible: 2, 3"),
        ([["4x", "stem"]], PlacementError, "'4x' is no scheme"),
        ([[4, "stem.weight"], [2, "stem"]], PlacementError, "they share one scheme"),
        ([[True, "stem"]], ConfigError, "an entry is"),
        ("no/such/file.json", ConfigError, "cannot be read"),
    ],
)
def test_bad_manual_entries_are_refused(entries, error, message):
    with pytest.raises(error, match=message):
        quantized("digits", 8).controller.init_precision("manual", {"bitwidth_per_scope": entries})


def test_what_init_precision_does_not_know_lists_what_it_does():
    controller = quantized("digits", 8).controller
    with pytest.raises(ConfigError, match=r"valid: hawq, manual, search.*What 'autoq' did"):
        controller.init_precision("autoq")
    with pytest.raises(ConfigError, match="nearest known one is 'compression_ratio'"):
        controller.init_precision("hawq", {"compresion_ratio": 2})
    with pytest.raises(ConfigError, match=r"'traces_per_layer_path' of hawq is not supported: .*unpickling"):
        controller.init_precision("hawq", {"traces_per_layer_path": "x"})
    with pytest.raises(PlacementError, match=r"needs data.*create_compressed_model"):
        controller.init_precision("hawq", {})
    with pytest.raises(PlacementError, match=r"no width is left for 'stem\.weight'"):
        controller.init_precision("hawq", {"bits": [4]}, {"stem": [8]})
    with (
        pytest.warns(UserWarning, match="one admissible width"),
        pytest.raises(PlacementError, match="needs data"),
    ):
        controller.init_precision("hawq", {"bits": [8]})


def test_init_range_without_data_says_so_and_prepare_for_export_lists():
    q = quantized("digits", 4, left_out=["stem.weight"])
    with pytest.raises(PlacementError, match=r"init_range of .*needs data"):
        q.controller.init_range()
    with torch.no_grad():
        q.controller.all_quantizations["head.weight"].scale[0] = float("nan")
    found = q.controller.prepare_for_export()
    assert found.left_out == ("stem.weight",)
    assert list(found.not_exportable) == ["head.weight"]
    assert not any(p.requires_grad for x in q.controller.all_quantizations.values() for p in x.parameters())


def test_a_controller_can_be_built_by_hand_with_the_arguments_of_the_reference():
    q, seen = quantized("digits", 4), []
    held, weights = q.controller.all_quantizations, q.setup.of_kind("weight")
    controller = QuantizationController(
        q.model,
        {"compression": {"algorithm": "quantization"}},
        lambda event, details: seen.append(event),
        {n: WeightQuantizer(held[n], q.model.get_submodule(p.layer), p.sites) for n, p in weights.items()},
        {n: NonWeightQuantizer(held[n], p.sites) for n, p in q.setup.of_kind("activation").items()},
        AdjacentGroups.of(q.setup),
        {n: p.shape for n, p in q.setup.points.items()},
        {"wq": 7, "aq": 9},
    )
    expected = run(q.model, q.inputs)
    assert list(controller.all_quantizations) == list(held)
    assert controller.statistics()["weight_quantizers"]["potential"] == 7
    controller.disable_weight_quantization()
    controller.apply(controller.assignment)
    assert seen == ["switch", "apply"]
    assert torch.equal(run(controller.strip_model(do_copy=True), q.inputs), expected)


def test_a_frozen_layer_is_quantized_and_stays_frozen():
    """Point 5: allowed at every width; the reference forbids it in mixed precision."""
    q = quantized("digits", 4)
    model = model_zoo.build("digits")
    model.stem.weight.requires_grad_(False)
    create_controller(model, q.setup, q.ranges, assign(q.setup, None))
    original = model.stem.parametrizations.weight.original
    assert isinstance(original, nn.Parameter)
    assert not original.requires_grad


def test_adjacent_groups_hold_every_quantizer_once():
    q = quantized("digits", 4)
    groups = AdjacentGroups.of(q.setup)
    assert sorted(n for g in groups.groups for n in g) == sorted(q.setup.points)
    assert groups.weight_inputs["head.weight"] == "head.input"
    assert BitAssignment({}) != q.assignment
