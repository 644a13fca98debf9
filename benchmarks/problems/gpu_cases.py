"""Networks of images and of text in any size, with data and quantizers, for `benchmarks.gpu`."""

from __future__ import annotations

import copy
import warnings
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysearch import Task
from raysearch.calibration import calibrate
from raysearch.cluster.pool import LocalPool, Pool
from raysearch.config import PlacementConfig, TrainingConfig
from raysearch.evaluation import Batch, DataSet, Divergence, Replica, default_forward
from raysearch.placement import place_quantizers
from raysearch.records import BitAssignment, RangeTable
from raysearch.training import Recipe

HEAD_SIZE = 64


class Residual(nn.Module):
    """body(x) + skip(x), with a ReLU behind it where asked."""

    def __init__(self, body: nn.Module, skip: nn.Module | None = None, relu: bool = False) -> None:
        super().__init__()
        self.body = body
        self.skip = skip or nn.Identity()
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        total = self.body(x) + self.skip(x)
        return F.relu(total) if self.relu else total


class Attention(nn.Linear):
    """Causal self-attention; the weight projects to queries, keys and values at once."""

    def forward(self, x: Tensor) -> Tensor:
        size = min(HEAD_SIZE, self.in_features // 2)
        q, k, v = super().forward(x).unflatten(-1, (3, -1, size)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def basic_block(inputs: int, outputs: int) -> Residual:
    changes = inputs != outputs
    first = convolution(inputs, outputs, 3, 2 if changes else 1)
    body = nn.Sequential(first, nn.ReLU(), convolution(outputs, outputs, 3))
    skip = convolution(inputs, outputs, 1, 2) if changes else None
    return Residual(body, skip, relu=True)


def image_net(width: int, stages: int, classes: int) -> nn.Sequential:
    """Like ResNet-18: a stem with pooling, then stages of two basic blocks."""
    sizes = [width] + [width * 2 ** (block // 2) for block in range(2 * stages)]
    blocks = [basic_block(inputs, outputs) for inputs, outputs in pairwise(sizes)]
    stem = (convolution(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], classes))
    return nn.Sequential(*stem, *blocks, *head)


def text_net(width: int, layers: int, words: int) -> nn.Sequential:
    """A causal language model with layers of attention and a network of two linear layers."""
    blocks: list[nn.Module] = []
    for _ in range(layers):
        attention = (Attention(width, 3 * width), nn.Linear(width, width))
        feed_forward = (nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        for body in (attention, feed_forward):
            blocks.append(Residual(nn.Sequential(nn.LayerNorm(width), *body)))
    head = (nn.LayerNorm(width), nn.Linear(width, words, bias=False))
    return nn.Sequential(nn.Embedding(words, width), *blocks, *head)


def loss_of(outputs: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2).float(), batch[1].flatten())


class Case:
    """A network with its quantizers and its data.

    Args:
        name: for the rows.
        model: the network.
        shape: of a batch: images [N, C, H, W], or sentences [N, T].
        classes: how many, or words.
        count: batches.
        bits: widths of the weights.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        shape: tuple[int, ...],
        classes: int,
        count: int = 2,
        bits: tuple[int, ...] = (2, 4, 8),
    ) -> None:
        self.name = name
        self.model = model.eval()
        self.batches: list[Batch] = []
        for _ in range(count):
            if len(shape) == 4:
                self.batches.append((torch.randn(shape), torch.randint(classes, shape[:1])))
            else:
                self.batches.append((torch.randint(classes, shape), torch.randint(classes, shape)))
        settings = PlacementConfig(weight_bit_widths=bits, activation_bit_widths=(8,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.setup = place_quantizers(model, self.example_inputs, settings)

    @property
    def example_inputs(self) -> tuple[Any, ...]:
        return (self.batches[0][0][:2],)

    def replica(self, device: str) -> Replica:
        data = {DataSet.CALIBRATION: self.batches}
        model = copy.deepcopy(self.model)
        return Replica(model, default_forward, data, Divergence("kl"), loss_of, device)

    def pool(self, device: str) -> LocalPool:
        return LocalPool(self.replica(device).place())

    def ranges(self, pool: Pool) -> RangeTable:
        return calibrate(self.setup, pool, len(self.batches))

    def recipe(self, ranges: RangeTable, device: str) -> Recipe:
        return Recipe(
            model=copy.deepcopy(self.model),
            setup=self.setup,
            ranges=ranges,
            assignment=BitAssignment.extreme(self.setup, 0),
            train=self.batches,
            validation=self.batches[:1],
            forward=default_forward,
            divergence=Divergence("kl"),
            loss=loss_of,
            settings=TrainingConfig(epochs=2, use_gpu=device == "cuda"),
        )

    def task(self) -> Task:
        return Task(
            copy.deepcopy(self.model),
            self.example_inputs,
            self.batches,
            self.batches[:1],
            self.batches,
            loss=loss_of,
        )


def small_cases() -> list[Case]:
    """Images, text of few words, and text of more classes than are decomposed."""
    torch.manual_seed(0)
    return [
        Case("images", image_net(8, 2, 10), (16, 3, 32, 32), 10),
        Case("text", text_net(32, 2, 12), (8, 4), 12),
        Case("text of 100 words", text_net(32, 1, 100), (4, 16), 100),
    ]


def large_cases(device: str) -> list[Case]:
    """ResNet-18 at 224 pixels and a language model of 85 million weights; on CPUs both in small."""
    torch.manual_seed(0)
    if device == "cpu":
        images = Case("images", image_net(8, 2, 50), (4, 3, 32, 32), 50, 1, (4,))
        return [images, Case("text", text_net(32, 2, 50), (2, 8), 50, 1, (4,))]
    images = Case("images", image_net(64, 4, 1000), (128, 3, 224, 224), 1000, 1, (4,))
    return [images, Case("text", text_net(768, 12, 8192), (8, 512), 8192, 1, (4,))]
