"""The QAT stage: train here or on Ray Train, and keep the best state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from raysearch.controller import QuantizationController
from raysearch.determinism import GeneratorStates, reproducible
from raysearch.records import FineTuneResult
from raysearch.training.loop import CALIBRATED, Progress, train
from raysearch.training.recipe import Recipe
from raysearch.training.state import load_state, state_bytes

CHECKPOINT = "best.safetensors"


class ProcessContext:
    """The loop alone in this process."""

    rank = 0
    world = 1

    def __init__(self, use_gpu: bool, on_epoch: Callable[[int], None]) -> None:
        kind = "cuda" if use_gpu and torch.cuda.is_available() else "cpu"
        self.device = torch.device(kind)
        self._on_epoch = on_epoch

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model as it is."""
        return model

    def resume(self) -> Progress | None:
        """Nothing: a loop in this process starts over, with the same result."""
        return None

    def report(self, progress: Progress) -> None:
        """Tell how many epochs are done."""
        self._on_epoch(progress.next_epoch)


def fine_tune(
    recipe: Recipe,
    save: Callable[[str, bytes], None],
    *,
    on_ray: bool,
    run_name: str,
    storage_path: str,
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> FineTuneResult:
    """Train the quantized model and save its best state.

    The best state is the one with the least monitored validation value among the calibrated model and all
    epochs, so training never makes the result worse on the validation data. Without training data, or with
    0 epochs, the calibrated model is saved and the result says why.

    Args:
        recipe: what to train and how.
        save: writes a checkpoint by name into the run's folder.
        on_ray: on Ray Train workers (DDP; gloo on CPU, NCCL on GPU), else in this process.
        run_name: name of the Ray Train run; the same name goes on where a killed driver left.
        storage_path: absolute path or URI for Ray Train's own checkpoints; shared by all nodes.
        on_epoch: called with the number of finished epochs.

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
    if on_ray:
        from raysearch.training.launch import train_on_ray

        progress = train_on_ray(recipe, run_name, storage_path)
        on_epoch(progress.next_epoch)
    else:
        progress = _train_here(recipe, on_epoch)
    save(CHECKPOINT, progress.best_state)
    return FineTuneResult(CHECKPOINT, progress.best_epoch, monitor, tuple(progress.history))


def _train_here(recipe: Recipe, on_epoch: Callable[[int], None]) -> Progress:
    """Train in this process, whose threads, generators and algorithms are put back."""
    threads = torch.get_num_threads()
    generators = GeneratorStates.now()
    torch.set_num_threads(recipe.settings.threads)
    try:
        with reproducible(recipe.deterministic, warn_only=True):
            return train(recipe, ProcessContext(bool(recipe.settings.use_gpu), on_epoch))
    finally:
        generators.restore()
        torch.set_num_threads(threads)


def load_checkpoint(controller: QuantizationController, data: bytes) -> None:
    """Put a saved state into a controller's model.

    Raises:
        StorageError: the state is damaged or belongs to another setup.
    """
    load_state(controller.model, data)
