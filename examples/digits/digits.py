"""The digits net and its data: scikit-learn's 1,797 handwritten digits, 8×8."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset


class Block(nn.Module):
    """Depthwise-separable convolution with a residual addition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Shape [N, width, H, W] in and out."""
        y = self.norm2(self.pointwise(self.act(self.norm1(self.depthwise(x)))))
        return self.act(x + y)


class DigitsNet(nn.Module):
    """Stem, three residual blocks at 16, 32 and 64 channels, classifier; 13,824 quantizable weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.block1 = Block(16)
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.norm_down = nn.BatchNorm2d(32)
        self.block2 = Block(32)
        self.widen = nn.Conv2d(32, 64, 1, bias=False)
        self.norm_widen = nn.BatchNorm2d(64)
        self.block3 = Block(64)
        self.act = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 1, 8, 8] to logits [N, 10]."""
        x = self.block1(self.act(self.norm(self.stem(x))))
        x = self.block2(self.act(self.norm_down(self.down(x))))
        x = self.block3(self.act(self.norm_widen(self.widen(x))))
        return self.head(self.pool(x).flatten(1))


def load_data() -> tuple[TensorDataset, TensorDataset]:
    """1,200 training and 597 validation digits, shuffled once with a fixed seed, pixels in 0…1."""
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16
    y = torch.from_numpy(labels).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, validation = order[:1200], order[1200:]
    return TensorDataset(x[train], y[train]), TensorDataset(x[validation], y[validation])
