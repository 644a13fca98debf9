"""What the zoo says of a model, and inputs that many share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Inputs = tuple[Tensor, ...] | dict[str, Tensor]


def images(n: int) -> tuple[Tensor, ...]:
    return (torch.randn(n, 3, 6, 6),)


def steps(n: int) -> tuple[Tensor, ...]:
    return (torch.randn(n, 5, 4),)


def rows(n: int) -> tuple[Tensor, ...]:
    return (torch.randn(n, 4),)


def words(n: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 9, (n, 6)),)


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        shows: the construct or family, for people.
        build: makes the model.
        inputs: makes n samples: arguments by place, or by name.
        needs: a package that it needs.
        targets: those that it is exported to.
        settings: of the run, beside the common ones.
        kind: of `raysearch.huggingface`, whose function makes the task of the saved model; "": a `Task`.
    """

    shows: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    needs: str = ""
    targets: tuple[str, ...] = ("packed", "onnx", "pt2")
    settings: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""
