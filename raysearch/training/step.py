"""The training loop in plain PyTorch; one rank's view of it, with or without Ray."""

from __future__ import annotations

import io
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from raysearch.config import TrainingConfig
from raysearch.controller import QuantizationController
from raysearch.determinism import GeneratorStates
from raysearch.errors import TrainingError
from raysearch.evaluation import Batch, evaluate_model, training_batches
from raysearch.evaluation.batches import batch_size, check_finite, map_tensors, take
from raysearch.evaluation.model.copies import private_copy
from raysearch.records import EpochMetrics
from raysearch.seeding import derive_seed
from raysearch.training.objective import Objective
from raysearch.training.recipe import Recipe
from raysearch.training.state import load_state, state_bytes

CALIBRATED = -1
"""The epoch by which the calibrated model goes that no step has changed yet."""


@dataclass
class Progress:
    """Everything a loop needs to go on after an interruption.

    Attributes:
        next_epoch: the first epoch that is not done.
        history: metrics per epoch; the first is of the calibrated model.
        best_epoch: the epoch with the least monitored value.
        best_state: the model's state after it, as safetensors bytes.
        state: the model's state now.
        optimizer: the optimizer's state now, by torch.save.
    """

    next_epoch: int = 0
    history: list[EpochMetrics] = field(default_factory=list)
    best_epoch: int = CALIBRATED
    best_state: bytes = b""
    state: bytes = b""
    optimizer: bytes = b""


class Context(Protocol):
    """Where the loop runs: alone in a process, or as one rank of a Ray Train worker group."""

    rank: int
    world: int
    device: torch.device

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

    Every random draw of an epoch comes from (seed, epoch, rank), so an interrupted loop that goes on gives
    what an uninterrupted one gives.

    Cost per step: one forward and backward of the quantized model; with "distill" one float forward more.

    Args:
        recipe: what to train and how.
        context: the rank that this process is.

    Returns:
        The state after the last epoch, with the best state and every epoch's metrics.

    Raises:
        TrainingError: the objective became NaN, or there is no batch; states the epoch and step.
    """
    settings = recipe.settings
    controller = recipe.build()
    model = controller.model.to(context.device)
    teacher = private_copy(recipe.model).to(context.device).eval().requires_grad_(False)
    progress = context.resume() or Progress()
    if progress.state:
        load_state(model, progress.state)
    else:
        _record(progress, recipe, model, teacher, CALIBRATED)
    optimizer = _make_optimizer(controller, settings)
    if progress.optimizer:
        saved = io.BytesIO(progress.optimizer)
        # On the CPU first: it may have been saved on a GPU that is not here. Loading puts it in place.
        optimizer.load_state_dict(torch.load(saved, map_location="cpu", weights_only=True))
    if recipe.deterministic and context.device.type != "cpu":
        be_as_strict_as_possible(recipe, teacher, context.device)
    objective = context.prepare(Objective(recipe, model, teacher))
    buffers = _buffers(model)
    seed = derive_seed(recipe.seed, "training", "order")
    batches = training_batches(recipe.train, settings.batch_size, seed, context.rank, context.world)
    for epoch in range(progress.next_epoch, settings.epochs):
        _set_learning_rate(optimizer, epoch, settings)
        share = _seeded(batches(epoch), recipe.seed, epoch, context.rank)
        _train_epoch(objective, optimizer, share, context.device, epoch)
        _put_back_remade(model, buffers)
        _record(progress, recipe, model, teacher, epoch)
        progress.next_epoch = epoch + 1
        progress.state = state_bytes(model)
        progress.optimizer = _optimizer_bytes(optimizer)
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
        objective(_place(batch, device)).backward()
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


def _optimizer_bytes(optimizer: torch.optim.Optimizer) -> bytes:
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    return buffer.getvalue()


def _seeded(batches: Iterable[Batch], run_seed: int, epoch: int, rank: int) -> Iterator[Batch]:
    """The batches, with the global RNG seeded by (run seed, epoch), after the first one by rank as well.

    A loader that shuffles draws its order when the first batch is asked for: all ranks must draw the same
    one, or their shares would overlap. Dropout and the like must differ between them.
    """
    torch.manual_seed(derive_seed(run_seed, "training", epoch))
    source = iter(batches)
    first = list(itertools.islice(source, 1))
    torch.manual_seed(derive_seed(run_seed, "training", epoch, rank))
    return itertools.chain(first, source)


def _train_epoch(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    device: torch.device,
    epoch: int,
) -> None:
    objective.train()
    step = -1
    for step, batch in enumerate(batches):
        optimizer.zero_grad(set_to_none=True)
        value = objective(_place(batch, device))
        if not bool(torch.isfinite(value)):
            check_finite(batch, f"the training data, epoch {epoch}, step {step}")
            raise TrainingError(
                f"the training objective is {value.item()} at epoch {epoch}, step {step}; lower "
                f"training.learning_rate or training.scale_learning_rate; the batch itself is finite."
            )
        value.backward()
        optimizer.step()
    if step < 0:
        raise TrainingError("the training data gave no batch; pass data with at least one batch a worker.")


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


def _place(batch: Batch, device: torch.device) -> Batch:
    return map_tensors(batch, lambda tensor: tensor.to(device))


def _record(progress: Progress, recipe: Recipe, model: nn.Module, teacher: nn.Module, epoch: int) -> None:
    """Evaluate the model as it is after an epoch, and keep its state if it is the best so far."""
    device = next(model.parameters()).device
    # One at a time: all validation samples together need not fit on a GPU.
    shards = (_place(batch, device) for batch in recipe.validation)
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


def _make_optimizer(controller: QuantizationController, settings: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW over weights (decayed), biases and norms (not decayed), and each learned scale by itself."""
    # Parameter of a quantizer and its size, by which its learning rate is scaled.
    scales: list[tuple[Tensor, float]] = []
    for quantizer in controller.all_quantizations.values():
        if quantizer.enabled:
            scales.extend(quantizer.learned())
    scale_ids = {id(parameter) for parameter, _ in scales}
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for parameter in controller.model.parameters():
        if parameter.requires_grad and id(parameter) not in scale_ids:
            (decayed if parameter.ndim > 1 else plain).append(parameter)
    groups = [
        _group(decayed, settings.learning_rate, settings.weight_decay),
        _group(plain, settings.learning_rate),
    ]
    # Adam's step has the size of the learning rate whatever the gradient's, so each scale gets a rate in
    # proportion to itself; otherwise small scales would jump by more than their own size.
    for scale, size in scales:
        if scale.requires_grad:
            groups.append(_group([scale], settings.scale_learning_rate * size))
    return torch.optim.AdamW([group for group in groups if group["params"]])


def _group(parameters: list[Tensor], learning_rate: float, weight_decay: float = 0.0) -> dict[str, Any]:
    # "base" is ours: what the schedule scales. Every group starts at it.
    return {"params": parameters, "base": learning_rate, "weight_decay": weight_decay, "lr": learning_rate}


def _set_learning_rate(optimizer: torch.optim.Optimizer, epoch: int, settings: TrainingConfig) -> None:
    factor = 0.5 * (1 + math.cos(math.pi * epoch / settings.epochs))
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * factor
