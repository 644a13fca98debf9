"""The task of `tests/data/old_run`: a run that raysearch wrote before its rooms were redrawn.

Weights and samples are read from a file, not made again: the run's fingerprints must hold on every machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from raysearch import Task

FOLDER = Path(__file__).parent.parent / "data"
RUN = FOLDER / "old_run"
TENSORS = FOLDER / "old_run_tensors.safetensors"


class Net(nn.Module):
    """Convolutions that share inputs, a depthwise one and two additions: groups whose widths are coupled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.left = nn.Conv2d(8, 8, 1)
        self.right = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.act = nn.ReLU()
        self.hidden = nn.Linear(8, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        y = self.act(self.left(x) + self.right(x))
        y = self.act(x + self.depth(y))
        return self.head(self.act(self.hidden(y.mean((2, 3)))))


def loss(outputs: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(outputs, batch[1])


def accuracy(outputs: Tensor, batch: Any) -> float:
    return float((outputs.argmax(1) == batch[1]).float().mean())


def make_task() -> Task:
    tensors = load_file(TENSORS)
    model = Net()
    prefix = "model."
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    model.load_state_dict(state)
    train = TensorDataset(tensors["train.images"], tensors["train.labels"])
    validation = TensorDataset(tensors["validation.images"], tensors["validation.labels"])
    return Task(
        model.eval(),
        (torch.zeros(2, 1, 6, 6),),
        train,
        validation,
        train,
        loss=loss,
        metrics={"accuracy": accuracy},
    )
