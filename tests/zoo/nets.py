"""Tiny models of the kinds that people bring; each with a function that makes n samples of its inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from tests.support.model_zoo import InvertedResidual, SharedReLU, TextClassifier
from tests.zoo.entry import Entry, images, rows, steps, words


class SqueezeExcite(nn.Module):
    """MobileNetV3's block: depthwise convolution, squeeze and excitation, hard-swish."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.squeeze, self.excite = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.depthwise(F.hardswish(self.expand(x))))
        scale = F.hardsigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head((x * scale).mean((2, 3)))


class UNet(nn.Module):
    """Segmentation: down, up, and a skip connection that is concatenated; logits [N, 3, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.down(x))
        low = F.relu(self.inner(F.max_pool2d(skip, 2)))
        return self.out(torch.cat([skip, F.relu(self.up(low))], 1))


class Detector(nn.Module):
    """Two outputs of one backbone: classes and boxes of every place."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.classes, self.boxes = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = F.relu(self.body(x))
        scores, boxes = self.classes(features), self.boxes(features)
        return scores.flatten(2).mean(2), boxes.flatten(2).transpose(1, 2)


class Sequence(nn.Module):
    """A recurrent layer and a head over its last step."""

    def __init__(self, layer: nn.Module, features: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class Cells(nn.Module):
    """A cell of an LSTM that runs step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = cell = x.new_zeros(x.shape[0], 5)
        for step in x.unbind(1):
            hidden, cell = self.cell(step, (hidden, cell))
        return self.head(hidden)


class Audio(nn.Module):
    """Dilated 1-d convolutions with a gate, as WaveNet has them."""

    def __init__(self) -> None:
        super().__init__()
        self.filter, self.gate = nn.Conv1d(2, 4, 3, dilation=2), nn.Conv1d(2, 4, 3, dilation=2)
        self.out = nn.Conv1d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.filter(x)) * torch.sigmoid(self.gate(x))).mean(2)


class Graph(nn.Module):
    """Messages along edges: gathered at their sources, added up at their targets."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.register_buffer("sources", torch.tensor([0, 1, 2, 3, 0]))
        self.register_buffer("targets", torch.tensor([1, 2, 3, 0, 2]))

    def forward(self, x: Tensor) -> Tensor:
        messages = F.relu(self.message(x.index_select(1, self.sources)))
        nodes = torch.zeros(x.shape[0], 4, 5).index_add(1, self.targets, messages)
        return self.head(nodes.mean(1))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 5), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(F.relu(self.left(a) + self.right(b)))


class Conv1dOfGpt2(nn.Module):
    """GPT-2's projections, [in, out] in addmm, and attention by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 18) * 0.4), nn.Parameter(torch.zeros(18))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.reshape(-1, 6), self.weight).view(*x.shape[:2], 18)
        q, k, v = flat.chunk(3, -1)
        scores = torch.einsum("bqd,bkd->bqk", q, k).softmax(-1)
        return self.head(torch.einsum("bqk,bkd->bqd", scores, v).mean(1))


class Experts(nn.Module):
    """A batched weight in bmm, and a list of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(2, 4, 5) * 0.4)
        self.out = nn.ParameterList([nn.Parameter(torch.randn(5, 3) * 0.4) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        both = torch.matmul(x[:, None, None], self.experts)[:, :, 0].relu()
        return both[:, 0] @ self.out[0] + both[:, 1] @ self.out[1]


class Views(nn.Module):
    """In-place operations, views, and another memory layout."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x.contiguous(memory_format=torch.channels_last)).relu_()
        y = self.b(x)
        y += x
        first = y[:, :2].clone()
        first.mul_(2)
        return self.head(torch.cat([first, y[:, 2:]], 1).permute(0, 2, 3, 1).reshape(x.shape[0], -1)[:, :8])


class Counted(nn.Module):
    """A buffer that the forward changes, and a feature that it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.kept = F.relu(self.body(x))
        return self.head(self.kept)


class Tied(nn.Module):
    """An embedding that is the head's weight too, and a layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner = nn.Embedding(9, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        return self.head(F.relu(self.inner(F.relu(self.inner(x)))).mean(1))


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


class OwnGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(Cubed.apply(self.body(x)))  # type: ignore[no-untyped-call]


@torch.library.custom_op("zoo::softer", mutates_args=())
def softer(x: Tensor) -> Tensor:
    return x / (1 + x.abs())


@softer.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _of_softer(ctx: Any, gradient: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return gradient / (1 + x.abs()) ** 2


softer.register_autograd(_of_softer, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


class OwnOperator(nn.Module):
    """An operator of a library of its own, with a fake and a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(softer(self.body(x)))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5)), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=False))


class Standardised(nn.Module):
    """A convolution whose weight the forward standardises: that one stays float."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True)
        return self.head(F.conv2d(x, weight, self.conv.bias).relu().mean((2, 3)))


def computed_weights() -> nn.Module:
    pruned = nn.Linear(6, 3)
    prune.l1_unstructured(pruned, "weight", 0.5)
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 5)),
        nn.ReLU(),
        parametrizations.spectral_norm(nn.Linear(5, 6)),
        nn.ReLU(),
        pruned,
    )


FOR_DENSE = {"objective": {"class_dim": 1}}
WITHOUT_ONNX = ("packed", "pt2")

NETS: dict[str, Entry] = {
    "resnet": Entry("residual block, shared in-place ReLU, BatchNorm", SharedReLU, images),
    "mobilenet_v2": Entry(
        "inverted residual, depthwise",
        InvertedResidual,
        lambda n: (torch.randn(n, 4, 5, 5),),
        settings=FOR_DENSE,
    ),
    "mobilenet_v3": Entry("squeeze and excitation, hard-swish", SqueezeExcite, images),
    "unet": Entry("segmentation with a concatenated skip", UNet, images, settings=FOR_DENSE),
    "detector": Entry("detection head with two outputs", Detector, images),
    "lstm": Entry(
        "LSTM, two layers, both directions",
        lambda: Sequence(nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True), 10),
        steps,
    ),
    "gru": Entry("GRU", lambda: Sequence(nn.GRU(4, 5, batch_first=True), 5), steps),
    "projected_lstm": Entry(
        "LSTM with a projection",
        lambda: Sequence(nn.LSTM(4, 5, batch_first=True, proj_size=3), 3),
        steps,
        targets=WITHOUT_ONNX,
    ),
    "projected_lstm_onnx": Entry(
        "LSTM with a projection, to ONNX",
        lambda: Sequence(nn.LSTM(4, 5, batch_first=True, proj_size=3), 3),
        steps,
    ),
    "lstm_cell": Entry("LSTMCell, step by step", Cells, steps),
    "audio": Entry("dilated, gated 1-d convolutions", Audio, lambda n: (torch.randn(n, 2, 12),)),
    "text": Entry("embedding and encoder layer", TextClassifier, lambda n: (torch.randint(0, 11, (n, 7)),)),
    "graph": Entry("gathers and index_add", Graph, lambda n: (torch.randn(n, 4, 4),)),
    "two_inputs": Entry("several inputs", TwoInputs, lambda n: (torch.randn(n, 4), torch.randn(n, 6))),
    "gpt2_layers": Entry("addmm with [in, out], einsum", Conv1dOfGpt2, lambda n: (torch.randn(n, 5, 6),)),
    "experts": Entry("batched weight, list of parameters", Experts, rows),
    "views": Entry("in-place operations, views, channels last", Views, images),
    "channels_last": Entry(
        "channels last, model and images",
        lambda: SqueezeExcite().to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        lambda n: (torch.randn(n, 3, 6, 6).contiguous(memory_format=torch.channels_last),),
    ),
    "bfloat16": Entry(
        "bfloat16, model and images",
        lambda: SqueezeExcite().bfloat16(),
        lambda n: (torch.randn(n, 3, 6, 6, dtype=torch.bfloat16),),
    ),
    "counted": Entry("buffers that change, kept features", Counted, rows, targets=WITHOUT_ONNX),
    "tied": Entry("tied weights, a layer that runs twice", Tied, words),
    "own_gradient": Entry("custom autograd function", OwnGradient, rows),
    "own_operator": Entry("custom operator (torch.library)", OwnOperator, rows),
    "checkpointed": Entry("activation checkpoints", Checkpointed, rows),
    "computed": Entry("weight norm, spectral norm, pruning", computed_weights, rows),
    "standardised": Entry("weight standardised in the forward", Standardised, images),
}
