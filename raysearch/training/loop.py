"""The training loop in plain PyTorch; one rank's view of it, with or without Ray."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from raysearch.determinism import GeneratorStates
from raysearch.evaluation import evaluate_model, training_batches
from raysearch.evaluation.batches import batch_size, take
from raysearch.evaluation.model.copies import private_copy
from raysearch.records import EpochMetrics
from raysearch.seeding import derive_seed
from raysearch.training.objective import Objective
from raysearch.training.optimizer import Optimizer
from raysearch.training.recipe import Recipe
from raysearch.training.schedule import Schedule
from raysearch.training.state import load_state, state_bytes
from raysearch.training.step import Rank, Stepper, place

CALIBRATED = -1
"""The epoch by which the calibrated model goes that no step has changed yet."""


@dataclass
class Progress:
    """Everything a loop needs to go on after an interruption.

    Attributes:
        next_epoch: the first epoch that is not done.
        step: optimizer steps that are done.
        history: metrics per epoch; the first is of the calibrated model.
        best_epoch: the epoch with the least monitored value.
        best_state: the model's state after it, as safetensors bytes.
        state: the model's state now.
        optimizer: the optimizer's state now, as safetensors bytes.
    """

    next_epoch: int = 0
    step: int = 0
    history: list[EpochMetrics] = field(default_factory=list)
    best_epoch: int = CALIBRATED
    best_state: bytes = b""
    state: bytes = b""
    optimizer: bytes = b""


class Context(Rank, Protocol):
    """Where the loop runs: alone in a process, or as one rank of a Ray Train worker group."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """Wrap the model for the group."""
        ...

    def resume(self) -> Progress | None:
        """What an interrupted loop left, if anything."""
        ...

    def report(self, progress: Progress) -> None:
        """Called by every rank after every epoch."""
        ...


def train(recipe: Recipe, context: Context) -> Progress:
    """Train the recipe's quantized model; the best epoch may be the calibrated model itself (`CALIBRATED`).

    Every random draw of a batch comes from (seed, epoch, rank, batch), so an interrupted loop that goes on
    gives what an uninterrupted one gives.

    Cost per batch: one forward and backward of the quantized model; with "distill" one float forward more.

    Args:
        recipe: what to train and how.
        context: the rank that this process is.

    Returns:
        The state after the last epoch, with the best state and every epoch's metrics.

    Raises:
        ConfigError: the settings contradict each other or the data.
        TrainingError: the objective became NaN, or there is no batch; states the epoch and step.
    """
    settings = recipe.settings
    controller = recipe.build()
    model = controller.model.to(context.device)
    teacher = private_copy(recipe.model).to(context.device).eval().requires_grad_(False)
    # Before an earlier state is loaded: a scale's rate is relative to its size at the start.
    optimizer = Optimizer(controller, settings)
    progress = context.resume() or Progress()
    if progress.state:
        load_state(model, progress.state)
    else:
        _record(progress, recipe, model, teacher, CALIBRATED)
    if progress.optimizer:
        optimizer.load(load(progress.optimizer))
    if recipe.deterministic and context.device.type != "cpu":
        be_as_strict_as_possible(recipe, teacher, context.device)
    objective = context.prepare(Objective(recipe, model, teacher))
    buffers = _buffers(model)
    seed = derive_seed(recipe.seed, "training", "order")
    batches = training_batches(
        recipe.train, settings.batch_size, seed, context.rank, context.world, settings.worker_share
    )
    schedule = Schedule(settings, batches.num_batches)
    stepper = Stepper(recipe, context, objective, optimizer, schedule)
    if batches.num_batches is None and progress.next_epoch:
        schedule.steps_per_epoch = progress.step // progress.next_epoch
    while not schedule.is_over(progress.next_epoch, progress.step):
        epoch = progress.next_epoch
        progress.step = stepper.train_epoch(batches(epoch), epoch, progress.step)
        _put_back_remade(model, buffers)
        _record(progress, recipe, model, teacher, epoch)
        progress.next_epoch = epoch + 1
        progress.state = state_bytes(model)
        progress.optimizer = save(optimizer.tensors())
        context.report(progress)
    return progress


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
    batch = take(recipe.validation[0], 0, 2)
    if batch_size(batch) < 2:
        # BatchNorm cannot train on a single sample, so nothing can be tried.
        torch.use_deterministic_algorithms(True, warn_only=True)
        return
    objective = Objective(recipe, recipe.build().model.to(device), teacher).train()
    generators = GeneratorStates.now()
    try:
        objective(place(batch, device)).backward()
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        torch.use_deterministic_algorithms(True, warn_only=True)
        warnings.warn(
            f"training twice may differ in the last digits, since an operation has no deterministic form: "
            f"{str(error).splitlines()[0]}",
            stacklevel=2,
        )
    finally:
        generators.restore()


def _buffers(model: nn.Module) -> dict[tuple[nn.Module, str], Tensor | None]:
    return {(module, key): buffer for module in model.modules() for key, buffer in module._buffers.items()}


def _put_back_remade(model: nn.Module, before: Mapping[tuple[nn.Module, str], Tensor | None]) -> None:
    """Put back buffers that a forward made anew in another shape: what it keeps of a batch is no state."""
    for (module, key), buffer in _buffers(model).items():
        if (module, key) not in before:
            del module._buffers[key]
            continue
        earlier = before[module, key]
        shapes = [None if tensor is None else tensor.shape for tensor in (earlier, buffer)]
        if shapes[0] != shapes[1]:
            module._buffers[key] = earlier


def _record(progress: Progress, recipe: Recipe, model: nn.Module, teacher: nn.Module, epoch: int) -> None:
    """Evaluate the model as it is after an epoch, and keep its state if it is the best so far."""
    device = next(model.parameters()).device
    # One at a time: all validation samples together need not fit on a GPU.
    shards = (place(batch, device) for batch in recipe.validation)
    metrics = evaluate_model(
        model,
        shards,
        forward=recipe.forward,
        divergence=recipe.divergence,
        reference=teacher,
        loss=recipe.loss,
        metrics=recipe.metrics,
    )
    monitored = metrics[recipe.monitor]
    # NaN compares false with everything: an epoch that has it is never the best, and never blocks another.
    earlier = [entry.metrics[recipe.monitor] for entry in progress.history]
    best = min((value for value in earlier if not math.isnan(value)), default=math.inf)
    progress.history.append(EpochMetrics(epoch, metrics))
    if monitored < best or not progress.best_state:
        progress.best_epoch = epoch
        progress.best_state = state_bytes(model)
