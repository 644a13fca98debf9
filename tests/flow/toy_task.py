"""A task that walks in seconds: two blobs, a small net with every kind of part that a walk touches."""

import os
import signal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from raysearch import Task


class ToyNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.mix = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.act = nn.ReLU()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        x = self.act(x + self.mix(x))
        return self.head(x.mean((2, 3)))


def data(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    images = torch.randn(count, 1, 6, 6, generator=generator) * 0.5 + labels.reshape(-1, 1, 1, 1).float() - 1
    return TensorDataset(images, labels)


def loss(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(outputs, batch[1])


def accuracy(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> float:
    return (outputs.argmax(1) == batch[1]).float().mean().item()


def net() -> ToyNet:
    torch.manual_seed(0)
    model = ToyNet()
    images, labels = data(96, 1).tensors
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


def make_task() -> Task:
    train = data(96, 1)
    return Task(
        net(),
        (torch.zeros(2, 1, 6, 6),),
        train,
        data(64, 2),
        train,
        loss=loss,
        metrics={"accuracy": accuracy},
    )


_calls = 0


def counted_forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Counts the forwards of this process and kills it at the one that the environment names."""
    global _calls
    _calls += 1
    if _calls == int(os.environ.get("TOY_KILL_AT", "-1")):
        os.kill(os.getpid(), signal.SIGKILL)
    return model(batch[0])


def make_fragile_task() -> Task:
    task = make_task()
    task.forward = counted_forward
    return task


def make_untrained_task() -> Task:
    task = make_task()
    task.train = None
    task.loss = None
    task.metrics = {}
    return task
