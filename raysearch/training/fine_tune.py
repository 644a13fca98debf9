"""The QAT stage: train here or on Ray Train, and keep the best state."""

from __future__ import annotations

from collections.abc import Callable

import torch

from raysearch.artifacts import Storage
from raysearch.controller import QuantizationController
from raysearch.determinism import GeneratorStates, reproducible
from raysearch.records import FineTuneResult
from raysearch.training.context import ProcessContext, Tell, silent
from raysearch.training.loop import train
from raysearch.training.progress import CALIBRATED, RUNNING, CheckpointFolder, Progress
from raysearch.training.recipe import Recipe
from raysearch.training.state import load_state, state_bytes

CHECKPOINT = "best.safetensors"


def fine_tune(
    recipe: Recipe,
    save: Callable[[str, bytes], None],
    *,
    on_ray: bool,
    storage: Storage | None = None,
    tell: Tell = silent,
) -> FineTuneResult:
    """Train the quantized model and save its best state.

    The best state is the one with the least monitored validation value among the calibrated model and all
    epochs, so training never makes the result worse on the validation data. Without training data, or with
    0 epochs, the calibrated model is saved and the result says why.

    Args:
        recipe: what to train and how.
        save: writes a checkpoint by name into the run's folder.
        on_ray: on Ray Train workers (DDP; gloo on CPU, NCCL on GPU), else in this process.
        storage: where the checkpoints go from which a training that was cut goes on, shared by all nodes;
            only in this process it may be None, which keeps none.
        tell: is given the status of training whenever it changes, from another thread with Ray.

    Raises:
        ConfigError: the objective needs a loss that the task lacks.
        TrainingError: training failed; names the epoch and step, or what Ray Train reported.
    """
    skipped = ""
    if recipe.train is None:
        skipped = "the Task has no training data, so the model was quantized after training only"
    elif recipe.settings.is_off:
        skipped = "training.epochs is 0, so the model was quantized after training only"
    if skipped:
        save(CHECKPOINT, state_bytes(recipe.build().model))
        return FineTuneResult(CHECKPOINT, CALIBRATED, "", (), skipped)
    # Read before training: it refuses an objective that the task cannot have.
    monitor = recipe.monitor
    if on_ray and storage is not None:
        from raysearch.training.launch import train_on_ray

        progress = train_on_ray(recipe, storage, tell)
    else:
        folder = CheckpointFolder(None if storage is None else storage.child(RUNNING))
        progress = train_here(recipe, ProcessContext(bool(recipe.settings.use_gpu), tell, folder))
    save(CHECKPOINT, progress.best_state)
    return FineTuneResult(
        CHECKPOINT,
        progress.best_epoch,
        monitor,
        tuple(progress.history),
        remarks=tuple(progress.remarks),
    )


def forget_checkpoints(storage: Storage) -> None:
    """Delete what only a training that is going on needs."""
    storage.delete_dir(RUNNING)


def train_here(recipe: Recipe, context: ProcessContext) -> Progress:
    """Train in this process, whose threads, generators and algorithms are put back.

    Args:
        recipe: what to train and how.
        context: of this process.

    Raises:
        TrainingError: see `train`.
    """
    threads = torch.get_num_threads()
    generators = GeneratorStates.now()
    torch.set_num_threads(recipe.settings.threads)
    try:
        with reproducible(recipe.deterministic, warn_only=True):
            return train(recipe, context)
    finally:
        generators.restore()
        torch.set_num_threads(threads)


def load_checkpoint(controller: QuantizationController, data: bytes) -> None:
    """Put a saved state into a controller's model.

    Raises:
        StorageError: the state is damaged or belongs to another setup.
    """
    load_state(controller.model, data)
