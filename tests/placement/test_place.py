"""Points, groups and multiply-accumulates against counts made by hand."""

import warnings
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysearch.config import PlacementConfig
from raysearch.errors import PlacementError
from raysearch.placement import place_quantizers
from raysearch.records import QuantizerSetup
from tests.support import model_zoo

# Weight id → (multiply-accumulates per sample, channel axis, activation that feeds it).
WEIGHTS: dict[str, dict[str, tuple[int, int, str]]] = {
    "digits": {
        "stem.weight": (64 * 9 * 4, 0, "stem.input"),
        "block.depthwise.weight": (64 * 9 * 4, 0, "block.depthwise.input"),
        "block.pointwise.weight": (64 * 16, 0, "block.pointwise.input"),
        "down.weight": (16 * 9 * 32, 0, "down.input"),
        "head.weight": (80, 0, "head.input"),
    },
    "shared_relu": {
        "conv1.weight": (9 * 9 * 12, 0, "conv1.input"),
        "conv2.weight": (9 * 9 * 16, 0, "conv2.input"),
        "downsample.0.weight": (9 * 12, 0, "conv1.input"),
    },
    "inverted_residual": {
        "conv.0.weight": (25 * 32, 0, "conv.0.input"),
        "conv.3.weight": (25 * 9 * 8, 0, "conv.3.input"),
        "conv.6.weight": (25 * 32, 0, "conv.6.input"),
    },
    "wave": {"conv.weight": (5 * 3 * 8, 0, "conv.input"), "out.weight": (5 * 12, 0, "out.input")},
    "volume": {"conv.weight": (16 * 8 * 2, 0, "conv.input"), "head.weight": (48, 0, "head.input")},
    # (4 → 6 channels in 2 groups: 4·3·9 weights) · 9 input positions; then 6·2·4 weights · 49.
    "upsampler": {"up.weight": (9 * 108, 1, "up.input"), "out.weight": (49 * 48, 1, "out.input")},
    "text": {
        "table.weight": (0, 0, ""),
        "hidden.weight": (7 * 48, 0, "hidden.input"),
        "head.weight": (24, 0, "head.input"),
    },
    "tied": {"table.weight": (7 * 66, 0, "head.input")},
    "encoder": {
        "layer.self_attn.in_proj_weight": (5 * 24 * 8, 0, "layer.self_attn.linear0.input0"),
        "layer.self_attn.out_proj.weight": (5 * 64, 0, "layer.self_attn.linear1.input0"),
        "layer.linear1.weight": (5 * 128, 0, "layer.linear1.input"),
        "layer.linear2.weight": (5 * 128, 0, "layer.linear2.input"),
        "head.weight": (24, 0, "head.input"),
    },
    "decoder": {
        "attention.in_proj_weight": (5 * 64 + 4 * 128, 0, "attention.linear0.input0"),
        "attention.out_proj.weight": (5 * 64, 0, "attention.linear2.input0"),
        "head.weight": (5 * 24, 0, "head.input"),
    },
    "dict": {
        "image.weight": (9 * 27, 0, "image.input"),
        "fact.weight": (12, 0, "fact.input"),
        "head.weight": (6, 0, "head.input"),
    },
    "twice": {"step.fc.weight": (2 * 16, 0, "step.fc.input"), "head.weight": (12, 0, "head.input")},
    "in_place": {"first.weight": (16, 0, "first.input"), "second.weight": (16, 0, "second.input")},
    "concat": {
        "stem.weight": (16 * 9 * 12, 0, "stem.input"),
        "left.weight": (16 * 16, 0, "left.input"),
        "right.weight": (16 * 8, 0, "right.input"),
        "joint.weight": (16 * 18, 0, "right.input"),
    },
    "functional": {
        "kernel": (16 * 9 * 12, 0, "conv0.input0"),
        "inner.0.weight": (16 * 16, 0, "inner.0.input"),
        "matrix": (20, 0, "linear0.input0"),
        "head.weight": (15, 0, "head.input"),
    },
    "attention": {
        "qkv.weight": (5 * 8 * 24, 0, "qkv.input"),
        "out.weight": (5 * 64, 0, "out.input"),
    },
    "sequential": {"0.weight": (36 * 36, 0, "0.input"), "5.weight": (180, 0, "5.input")},
    "sequential_residual": {
        "0.weight": (16, 0, "0.input"),
        "1.0.weight": (16, 0, "1.0.input"),
        "2.weight": (16, 0, "2.input"),
    },
}

# Groups of more than one activation: the operands of an addition, the tensors that one weight reads.
PARTNERS: dict[str, set[tuple[str, ...]]] = {
    "digits": {("block.depthwise.input", "block.add0.input1")},
    "shared_relu": {("add0.input0", "add0.input1")},
    "inverted_residual": {("conv.0.input", "add0.input1")},
    "encoder": {
        ("layer.self_attn.linear0.input0", "layer.add0.input1"),
        ("layer.linear1.input", "layer.add1.input1"),
    },
    "decoder": {("attention.linear0.input0", "attention.linear1.input0", "add0.input1")},
    "dict": {("add0.input0", "add0.input1")},
    "twice": {("step.add0.input0", "step.add0.input1"), ("add0.input0", "step.fc.input")},
    "in_place": {("first.input", "add0.input0"), ("second.input", "add1.input0")},
    "attention": {("add0.input0", "add0.input1")},
    "sequential_residual": {("0.input", "add0.input1"), ("1.0.input", "1.add0.input1")},
}


@cache
def place(name: str, samples: int = 3) -> QuantizerSetup:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return place_quantizers(model_zoo.build(name), model_zoo.inputs(name, samples))


@pytest.mark.parametrize("name", model_zoo.NETS)
def test_weights_and_macs_are_the_hand_counts(name: str) -> None:
    points = place(name).of_kind("weight")
    assert {p.id: (p.macs, p.granularity.axis, p.input_point) for p in points.values()} == WEIGHTS[name]
    parameters = dict(model_zoo.build(name).named_parameters())
    assert all(p.shape == tuple(parameters[p.id].shape) for p in points.values())


@pytest.mark.parametrize("name", model_zoo.NETS)
def test_only_operands_of_one_addition_share_a_group(name: str) -> None:
    groups = place(name).groups.values()
    shared = {tuple(sorted(g.points)) for g in groups if len(g.points) > 1}
    assert shared == {tuple(sorted(points)) for points in PARTNERS.get(name, set())}
    assert all(g.id == g.points[0] for g in groups)


@pytest.mark.parametrize("name", model_zoo.NETS)
def test_the_batch_size_of_the_example_changes_nothing(name: str) -> None:
    assert place(name, 1) == place(name)


def test_activation_points_have_all_readers_and_the_shape_of_one_sample() -> None:
    points = place("digits").of_kind("activation")
    assert {p.id: p.shape for p in points.values()} == {
        "stem.input": (1, 8, 8),
        "block.depthwise.input": (4, 8, 8),
        "block.pointwise.input": (4, 8, 8),
        "block.add0.input1": (4, 8, 8),
        "down.input": (4, 8, 8),
        "head.input": (8,),
    }
    readers = [(s.module, s.role) for s in points["block.depthwise.input"].sites]
    assert readers == [("block.depthwise", "input"), ("block", "add")]
    shared = place("shared_relu").points["conv1.input"]
    assert [s.module for s in shared.sites] == ["conv1", "downsample.0"]


def test_a_tied_weight_is_one_point_with_two_sites() -> None:
    sites = place("tied").points["table.weight"].sites
    assert [(s.module, s.name) for s in sites] == [("table", "weight"), ("head", "weight")]


def test_a_module_with_two_names_is_one_site() -> None:
    sites = place("twice").points["step.fc.weight"].sites
    assert [(s.module, s.name) for s in sites] == [("step.fc", "weight")]


def test_max_pooling_and_moves_do_not_separate_reader_and_producer() -> None:
    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv1d(2, 2, 3, padding=1)
            self.b = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            pooled = F.adaptive_max_pool1d(F.max_pool1d(x, 2), 2)
            return self.a(x), self.b(F.dropout(pooled.transpose(1, 2), training=self.training))

    setup = place_quantizers(Pools(), (torch.randn(3, 2, 8),))
    assert [s.module for s in setup.points["a.input"].sites] == ["a", "b"]


def test_a_model_that_is_one_layer_is_placed_at_the_root() -> None:
    setup = place_quantizers(nn.Linear(3, 2), (torch.randn(2, 3),))
    assert list(setup.points) == ["weight", "input"]
    assert setup.points["weight"].input_point == "input"


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(PlacementError, match="nothing to quantize"):
        place_quantizers(nn.Sequential(nn.ReLU()), (torch.randn(2, 3),))


def test_widths_reach_the_groups_ascending_and_once() -> None:
    setup = place_quantizers(
        model_zoo.build("digits"),
        model_zoo.inputs("digits"),
        PlacementConfig(weight_bit_widths=(8, 2, 8), activation_bit_widths=(5,)),
    )
    for group in setup.groups.values():
        assert group.bit_widths == ((2, 8) if setup.group_kind(group.id) == "weight" else (5,))


# Node → what it reads, of the nodes before it.
NETWORKS = {
    "digits": [
        ("stem", "x input"), ("block.depthwise", "stem"), ("block.pointwise", "block.depthwise"),
        ("block add", "stem", "block.pointwise"), ("down", "block add"), ("head", "down"),
    ],
    "attention": [
        ("qkv", "x input"), ("out", "qkv"), (" add", "x input", "out"),
    ],
    "concat": [
        ("stem", "x input"), ("left", "stem"), ("right", "left"), (" cat", "left", "right"),
        ("joint", " cat"),
    ],
    "functional": [
        ("kernel", "x input"), ("inner.0", "kernel"), ("matrix", "inner.0"), ("head", "matrix"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_says_what_reads_what(name: str) -> None:
    setup = place(name)
    labels = [node.name if node.kind == "layer" else f"{node.name} {node.kind}" for node in setup.network]
    read = []
    for label, node in zip(labels, setup.network, strict=True):
        read.append((label, *(labels[source] for source in node.sources)))
    assert [entry for entry in read if len(entry) > 1] == NETWORKS[name]
    assert {weight for node in setup.network for weight in node.weights} == set(setup.of_kind("weight"))
    assert replace(setup, network=()).fingerprint() == setup.fingerprint()


def test_the_setup_survives_its_json_form() -> None:
    setup = place("twice")
    assert QuantizerSetup.from_json(setup.to_json()) == setup


def test_without_activation_widths_weights_alone_are_quantized():
    both = place("shared_relu")
    settings = PlacementConfig(activation_bit_widths=())
    alone = place_quantizers(model_zoo.build("shared_relu"), model_zoo.inputs("shared_relu", 3), settings)
    assert alone.of_kind("activation") == {}
    assert list(alone.points) == list(both.of_kind("weight"))
    for name, point in alone.points.items():
        assert point.input_point == ""
        assert (point.macs, point.shape) == (both.points[name].macs, both.points[name].shape)
