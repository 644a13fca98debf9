"""The task that raysearch runs: the trained net, its data, its loss and metric."""

import torch
from fashion_mnist import load_data
from torch import Tensor
from torch.nn import functional as F
from train import float_net

from raysearch import Task


def loss(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy, mean over the batch."""
    return F.cross_entropy(outputs, batch[1])


def accuracy(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> float:
    """Share of right classes."""
    return (outputs.argmax(1) == batch[1]).float().mean().item()


def make_task() -> Task:
    """Calibration and training share the training images; validation is apart; the test set stays out."""
    train, validation, _ = load_data()
    return Task(
        model=float_net(),
        example_inputs=(torch.zeros(2, 1, 28, 28),),
        calibration=train,
        validation=validation,
        train=train,
        loss=loss,
        metrics={"accuracy": accuracy},
    )
