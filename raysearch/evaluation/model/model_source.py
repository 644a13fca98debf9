"""A float model that workers make themselves, so that its weights need not be sent to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from raysearch.errors import TaskError
from raysearch.evaluation.model.model_hash import hash_model
from raysearch.evaluation.model.private_model import own_model

ModelFactory = Callable[[], nn.Module]


@dataclass(frozen=True)
class ModelSource:
    """Where a float model comes from.

    Attributes:
        factory: gives the model, anew each time it is called.
        example_inputs: positional arguments of one forward.
        digest: `hash_model` of the model as raysearch works on it.
    """

    factory: ModelFactory
    example_inputs: tuple[Any, ...]
    digest: str

    def make(self) -> nn.Module:
        """The model as raysearch works on it.

        Raises:
            TaskError: the factory fails, or gives other weights than it gave when the run began.
        """
        model = own_model(called(self.factory), self.example_inputs)
        if hash_model(model) != self.digest:
            raise TaskError(
                "the function Task(model=...) gave another model than when the run began. It must give the "
                "same weights each time, on every node: read them from files that do not change, and leave "
                "random initial values out."
            )
        return model


def called(factory: ModelFactory) -> nn.Module:
    """What a factory gives.

    Raises:
        TaskError: it fails, or gives no module.
    """
    try:
        model = factory()
    except (Exception, SystemExit) as error:
        raise TaskError(
            f"the function Task(model=...) failed: {type(error).__name__}: {error}. It is called without "
            f"arguments, in the driver and on every worker; what it reads must be there on every node."
        ) from error
    if not isinstance(model, nn.Module):
        raise TaskError(
            f"the function Task(model=...) gave a {type(model).__name__}; it must give a torch.nn.Module."
        )
    return model
