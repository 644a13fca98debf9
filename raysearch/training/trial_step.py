"""One backward pass of a few samples before training, on a model of its own."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from raysearch.determinism import GeneratorStates
from raysearch.evaluation.batches import batch_size, take
from raysearch.training.objective import Objective
from raysearch.training.recipe import Recipe
from raysearch.training.step import place

SAMPLES = 2
"""BatchNorm cannot train on a single sample."""


def _try_backward(recipe: Recipe, teacher: nn.Module, device: torch.device) -> nn.Module | None:
    """The model after the backward pass; None where there are too few samples to try."""
    batch = take(recipe.validation[0], 0, SAMPLES)
    if batch_size(batch) < SAMPLES:
        return None
    objective = Objective(recipe, recipe.build().model.to(device), teacher).train()
    generators = GeneratorStates.now()
    try:
        objective(place(batch, device)).backward()
    finally:
        generators.restore()
    return objective.model


def leaves_parameters_unused(recipe: Recipe, teacher: nn.Module, device: torch.device) -> bool:
    """Whether some parameters get no gradient; where it cannot be tried, they may.

    Args:
        recipe: builds the model, and has the validation samples that are tried.
        teacher: the float model, on `device`.
        device: where training runs.
    """
    model = _try_backward(recipe, teacher, device)
    if model is None:
        return True
    return any(p.requires_grad and p.grad is None for p in model.parameters())


def be_as_strict_as_possible(recipe: Recipe, teacher: nn.Module, device: torch.device) -> None:
    """Refuse operations without a deterministic form from now on; where training needs one, warn of it once.

    Merely to be warned does not suffice everywhere: the backward of a fused attention is deterministic only
    where anything else is refused. A refusal after hours of measuring would strand the run, so one backward
    of two samples is tried before, on a model of its own.

    Args:
        recipe: builds the model, and has the validation samples that are tried.
        teacher: the float model, on `device`.
        device: where training runs.
    """
    torch.use_deterministic_algorithms(True)
    try:
        if _try_backward(recipe, teacher, device) is None:
            torch.use_deterministic_algorithms(True, warn_only=True)
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        torch.use_deterministic_algorithms(True, warn_only=True)
        warnings.warn(
            f"training twice may differ in the last digits, since an operation has no deterministic form: "
            f"{str(error).splitlines()[0]}",
            stacklevel=2,
        )
