"""Replicas whose models are small enough for a dense Hessian, with their data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysearch.calibration import calibrate
from raysearch.cluster.pool import LocalPool
from raysearch.config import PlacementConfig
from raysearch.evaluation import Divergence, Replica, default_forward
from raysearch.placement import place_quantizers
from raysearch.records import QuantizerSetup, RangeTable

CLASSES = 4


class ConvNet(nn.Module):
    """Convolution, BatchNorm with lived-in statistics, ReLU, residual addition, pooling, linear."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=groups, bias=False)
        self.norm2 = nn.BatchNorm2d(4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, CLASSES)
        for norm in (self.norm1, self.norm2):
            nn.init.uniform_(norm.running_mean, -0.3, 0.3)
            nn.init.uniform_(norm.running_var, 0.3, 0.8)
            nn.init.uniform_(norm.weight, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.stem(x)))
        x = F.relu(x + self.norm2(self.conv(x)))
        return self.head(self.pool(x).flatten(1))


class Tied(nn.Module):
    """One weight that two modules hold and use."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x)))))


class Words(nn.Module):
    """An embedding, averaged, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 5), nn.Linear(5, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens).mean(1).tanh())


class Attention(nn.Module):
    """Fused scaled-dot-product attention with two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c)
        return self.head(mixed.mean(1))


class Unreached(nn.Module):
    """The output ignores `idle`."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(6, CLASSES), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.idle(x)
        return self.used(x)


class Branches(nn.Module):
    """Linear in both its weights together."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, CLASSES), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x.flip(1))


NETS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, CLASSES)), (6,)),
    "relu": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES)), (6,)),
    "conv": (ConvNet, (2, 5, 5)),
    "depthwise": (lambda: ConvNet(groups=4), (2, 5, 5)),
    "tied": (Tied, (6,)),
    "embedding": (Words, (3,)),
    "attention": (Attention, (3, 4)),
    "unreached": (Unreached, (6,)),
    "branches": (Branches, (6,)),
}


def cross_entropy(outputs: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(outputs, batch[1])


def inputs_of(name: str, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *NETS[name][1])
    if name == "embedding":
        return torch.randint(0, 7, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def make_replica(
    name: str, sizes: tuple[int, ...] = (6, 6, 3), kind: str = "kl", seed: int = 0, scale: float = 2.0
) -> Replica:
    """A replica with labelled shards of the given sizes; `scale` sharpens the logits."""
    torch.manual_seed(seed)
    model = NETS[name][0]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    shards = []
    for index, size in enumerate(sizes):
        labels = torch.arange(size) % CLASSES
        shards.append((inputs_of(name, size, 1000 * seed + index), labels))
    return Replica(model, default_forward, {"calibration": shards}, Divergence(kind), cross_entropy)


def make_setup(name: str, replica: Replica, **options: Any) -> QuantizerSetup:
    return place_quantizers(replica.model, (inputs_of(name, 2, 0),), PlacementConfig(**options))


def make_ranges(setup: QuantizerSetup, replica: Replica) -> RangeTable:
    return calibrate(setup, LocalPool(replica), len(replica.shards["calibration"]))
