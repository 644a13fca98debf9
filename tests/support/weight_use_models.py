"""One small model for each way in which a layer can use its weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysearch.evaluation import Divergence, Replica, default_forward

CLASSES = 4


class Convolutions(nn.Module):
    """Layers one after another with an in-place ReLU behind each, then a mean and a head."""

    def __init__(self, *layers: nn.Module, features: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(features, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu_(layer(x))
        return self.head(x.flatten(2).mean(2))


class Attended(nn.Module):
    """Torch's own attention; over its input, or over three different tensors; the batch first or second."""

    def __init__(self, is_self: bool, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)
        self.head = nn.Linear(4, CLASSES)
        self.is_self, self.batch_first = is_self, batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        key, value = (x, x) if self.is_self else (x.tanh(), x.flip(-1))
        mixed, _ = self.attention(x, key, value, need_weights=False)
        return self.head(mixed.mean(1 if self.batch_first else 0))


class Language(nn.Module):
    """A padded embedding tied to the head over the words, a table of positions, a dense output."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(9, 5, padding_idx=0), nn.Embedding(4, 5)
        self.inner = nn.Linear(5, 5)
        self.head = nn.Linear(5, 9, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.positions(torch.arange(tokens.shape[1]))
        return self.head(self.inner(x).tanh())


class Reused(nn.Module):
    """One convolution three times, with the residual added in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            y = self.conv(x)
            y += x
            x = y.relu_()
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Class logits at every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x)))


class Merged(nn.Module):
    """Samples merged with tokens, token by token; and with windows, sample by sample."""

    def __init__(self) -> None:
        super().__init__()
        self.minor, self.major, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        y = self.minor(x.transpose(0, 1).reshape(t * n, c)).relu_()
        y = y.reshape(t, n, c).transpose(0, 1)
        return self.head(self.major(y.reshape(n * t, c)).relu_().reshape(n, t, c).mean(1))


class Hidden(nn.Module):
    """A weight used by a product that is no layer, beside a layer that uses it too; and a sliced one."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.matrix = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4))
        self.rows, self.head = nn.Linear(4, 6), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.twice(x).relu_() @ self.twice.weight + x @ self.matrix.sin()
        overlapping = F.linear(y, self.rows.weight[:4]) + F.linear(x, self.rows.weight[2:])
        return self.head(overlapping.relu().mean(1))


class TransposedUse(nn.Module):
    """One matrix as it is and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(self.code(x).relu_(), self.code.weight.t()).mean(1))


IMAGE = (2, 5, 5)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "grouped, strided": (
        lambda: Convolutions(nn.Conv2d(2, 4, 3, 2, 1, groups=2), nn.Conv2d(4, 8, 2, groups=4), features=8),
        IMAGE, set(),
    ),
    "same, circular, reflected": (
        lambda: Convolutions(
            nn.Conv2d(2, 3, 2, padding="same", dilation=2),
            nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"),
            nn.Conv2d(3, 3, (3, 1), padding=(2, 0), padding_mode="reflect", dilation=(2, 1), stride=(2, 1)),
            features=3,
        ),
        IMAGE, set(),
    ),
    "transposed": (
        lambda: Convolutions(
            nn.ConvTranspose2d(2, 4, 3, 2, 1, output_padding=1, groups=2),
            nn.ConvTranspose2d(4, 3, 2, dilation=2, output_padding=1, stride=2), features=3,
        ),
        IMAGE, set(),
    ),
    "conv1d": (
        lambda: Convolutions(
            nn.Conv1d(2, 4, 3, padding="valid"), nn.ConvTranspose1d(4, 4, 2, 2, groups=4), features=4
        ),
        (2, 7), set(),
    ),
    "conv3d": (
        lambda: Convolutions(
            nn.Conv3d(1, 2, (1, 2, 3), padding=(0, 1, 1)), nn.ConvTranspose3d(2, 2, 2), features=2
        ),
        (1, 3, 3, 3), set(),
    ),
    "attention": (lambda: Attended(True, True), (3, 4), set()),
    "attention, three inputs, batch second": (lambda: Attended(False, False), (3, 4), set()),
    "language": (Language, (4,), {"positions.weight"}),
    "reused": (Reused, IMAGE, set()),
    "dense": (Dense, (2, 3, 3), set()),
    "merged": (Merged, (3, 4), set()),
    "hidden": (Hidden, (3, 4), {"twice.weight", "matrix", "rows.weight"}),
    "transposed use": (TransposedUse, (3, 4), {"code.weight"}),
}  # fmt: skip
"""Name → model, shape of a sample, weights whose samples must be taken one by one."""


def build(name: str, sizes: tuple[int, ...] = (5, 3), kind: str = "kl", seed: int = 0) -> Replica:
    """A replica of a case with shards of the given sizes; the logits are sharp enough to matter."""
    torch.manual_seed(seed)
    make, shape, _ = CASES[name]
    model = make().eval()
    generator = torch.Generator().manual_seed(seed)
    shards = []
    for size in sizes:
        if name == "language":
            x = torch.randint(0, 9, (size, *shape), generator=generator)
        else:
            x = torch.randn((size, *shape), generator=generator)
        shards.append((x, torch.arange(size) % CLASSES))
    class_dim = 1 if name == "dense" else -1
    return Replica(model, default_forward, {"calibration": shards}, Divergence(kind, class_dim))


def weights_of(replica: Replica) -> tuple[str, ...]:
    """Every parameter with more than one dimension, tied ones once."""
    return tuple(name for name, value in replica.model.named_parameters() if value.ndim > 1)
