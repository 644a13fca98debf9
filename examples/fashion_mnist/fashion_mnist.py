"""Fashion-MNIST from the files of Debian's package `dataset-fashion-mnist`, and a ResNet-20 for it."""

import gzip
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

FOLDER = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
VALIDATION = 5_000


class Block(nn.Module):
    """Two 3×3 convolutions with BatchNorm and a shortcut (He et al., 2016, section 3.3)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.act = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Shape [N, inputs, H, W] to [N, outputs, H/stride, W/stride]."""
        y = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return self.act(y + self.shortcut(x))


class ResNet20(nn.Module):
    """Three stages of three blocks at 16, 32 and 64 channels on 14×14 maps; 272,186 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.act = nn.ReLU()
        widths = [(16, 16), (16, 32), (32, 64)]
        self.blocks = nn.Sequential(
            *(
                Block(inputs if not number else outputs, outputs, 1 if number or inputs == outputs else 2)
                for inputs, outputs in widths
                for number in range(3)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 1, 28, 28] to logits [N, 10]."""
        x = self.blocks(self.act(self.norm(self.stem(x))))
        return self.head(self.pool(x).flatten(1))


def _read(name: str) -> Tensor:
    """An idx file: byte 3 counts the dimensions, then big-endian sizes, then bytes."""
    path = FOLDER / f"{name}-ubyte.gz"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there. Install the data (`apt-get install dataset-fashion-mnist`), or set the "
            f"environment variable FASHION_MNIST to a folder with the four files of "
            f"https://github.com/zalandoresearch/fashion-mnist"
        )
    data = gzip.decompress(path.read_bytes())
    start = 4 + 4 * data[3]
    shape = np.frombuffer(data, ">u4", data[3], 4)
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy())


def _split(name: str) -> TensorDataset:
    images, labels = _read(f"{name}-images-idx3"), _read(f"{name}-labels-idx1")
    return TensorDataset((images[:, None].float() / 255 - 0.286) / 0.353, labels.long())


def load_data() -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """55,000 training and 5,000 validation images of the official training set, and its 10,000 test images.

    Raises:
        FileNotFoundError: the files are not there; says how to get them.
    """
    images, labels = _split("train").tensors
    train = TensorDataset(images[:-VALIDATION], labels[:-VALIDATION])
    validation = TensorDataset(images[-VALIDATION:], labels[-VALIDATION:])
    return train, validation, _split("t10k")
