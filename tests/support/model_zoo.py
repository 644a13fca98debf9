"""Small nets that cover what a user may bring; each with a function that makes inputs of n samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class Block(nn.Module):
    """Depthwise-separable convolution with a residual addition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.pointwise(F.relu(self.norm1(self.depthwise(x))))))


class Digits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.block = Block(4)
        self.down = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(F.relu(self.norm(self.stem(x))))
        return self.head(F.relu(self.down(x)).mean((2, 3)))


class SharedReLU(nn.Module):
    """ResNet block as torchvision writes it: one in-place ReLU module, `out += identity`, in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.downsample = nn.Sequential(nn.Conv2d(3, 4, 1, stride=2, bias=False), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.downsample(x)
        return self.relu(out).flatten(1)


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expansion, depthwise convolution, projection; the sum is linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True),
            nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Wave(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3, stride=2, padding=1)
        self.out = nn.Conv1d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.conv(x)))


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.max_pool3d(F.relu(self.conv(x)), (2, 1, 1)).flatten(1))


class Upsampler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)
        self.out = nn.ConvTranspose2d(6, 2, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.up(x)))


class TextClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.hidden = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(F.gelu(self.hidden(self.table(ids))).mean(1))


class TiedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.table(ids)))


class Encoder(nn.Module):
    """A position table of batch size 1, and torch's own encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 5, 8) * 0.1)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x + self.position).mean(1))


class Decoder(nn.Module):
    """Attention over another sequence, which splits `in_proj_weight`."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.head(x + self.attention(x, memory, memory, need_weights=False)[0])


class DictInOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(1, 3, 3)
        self.fact = nn.Linear(4, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        joint = self.image(batch["image"]).mean((2, 3)) + self.fact(input=batch["fact"])
        return {"logits": self.head(joint), "joint": joint}


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        shifted = x + 1.0
        return torch.add(shifted, self.fc(x), alpha=2)


class Twice(nn.Module):
    """One module called twice and known by two names; additions of its own around it."""

    def __init__(self) -> None:
        super().__init__()
        self.step = Residual()
        self.again = self.step
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(torch.tanh(self.step(x)))
        return self.head(y + x)


class InPlace(nn.Module):
    """In-place additions, one of which only an alias shows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        alias = y
        y += x
        z = self.second(y.clone())
        z.add_(alias)
        return z


class SequentialResidual(nn.Sequential):
    """A container with an addition: a module registered on it would be run as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Concat(nn.Module):
    """A skip connection that is concatenated, and one of its parts is read on its own as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.left = nn.Conv2d(4, 4, 1)
        self.right = nn.Conv2d(4, 2, 1)
        self.joint = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        left = F.relu(self.left(x))
        return self.joint(torch.cat([left, self.right(left)], 1))


class Functional(nn.Module):
    """Weights of a module's own, read by functions; a layer of torch that calls the same function below."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GELU())
        self.matrix = nn.Parameter(torch.randn(5, 4))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(F.relu(F.conv2d(x, self.kernel, padding=1)))
        return self.head(F.gelu(F.linear(input=x.mean((2, 3)), weight=self.matrix)))


class Attention(nn.Module):
    """Attention written out: products of two activations, a softmax between them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).chunk(3, -1)
        weights = (query @ key.transpose(-1, -2) / 8**0.5).softmax(-1)
        return x + self.out(torch.bmm(weights, value))


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(36, 5),
    )  # fmt: skip


def sequential_residual() -> nn.Module:
    inner = SequentialResidual(nn.Linear(4, 4), nn.ReLU())
    return SequentialResidual(nn.Linear(4, 4), inner, nn.Linear(4, 4))


def images(channels: int, size: int) -> Callable[[int], tuple[Any, ...]]:
    return lambda n: (torch.randn(n, channels, size, size),)


def sequence(n: int) -> tuple[Any, ...]:
    return (torch.randn(n, 5, 8),)


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Any, ...]]]] = {
    "digits": (Digits, images(1, 8)),
    "shared_relu": (SharedReLU, images(3, 6)),
    "inverted_residual": (InvertedResidual, images(4, 5)),
    "wave": (Wave, lambda n: (torch.randn(n, 2, 10),)),
    "volume": (Volume, lambda n: (torch.randn(n, 1, 5, 3, 3),)),
    "upsampler": (Upsampler, images(4, 3)),
    "text": (TextClassifier, lambda n: (torch.randint(0, 11, (n, 7)),)),
    "tied": (TiedHead, lambda n: (torch.randint(0, 11, (n, 7)),)),
    "encoder": (Encoder, sequence),
    "decoder": (Decoder, lambda n: (*sequence(n), torch.randn(n, 4, 8))),
    "dict": (DictInOut, lambda n: ({"image": torch.randn(n, 1, 5, 5), "fact": torch.randn(n, 4)},)),
    "twice": (Twice, lambda n: (torch.randn(n, 4),)),
    "in_place": (InPlace, lambda n: (torch.randn(n, 4),)),
    "concat": (Concat, images(3, 4)),
    "functional": (Functional, images(3, 4)),
    "attention": (Attention, sequence),
    "sequential": (sequential, images(1, 8)),
    "sequential_residual": (sequential_residual, lambda n: (torch.randn(n, 4),)),
}


def build(name: str) -> nn.Module:
    """A net with fixed weights and BatchNorm statistics that are not the trivial ones, in eval mode."""
    torch.manual_seed(7)
    model = NETS[name][0]()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def inputs(name: str, n: int = 3) -> tuple[Any, ...]:
    """Positional arguments of n samples, the same at every call."""
    torch.manual_seed(n)
    return NETS[name][1](n)


def output(result: Any) -> Tensor:
    """The tensor that tests compare."""
    return result["logits"] if isinstance(result, dict) else result
