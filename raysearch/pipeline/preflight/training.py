"""The first training batches, and one step of the quantized model on each size of them."""

from __future__ import annotations

import warnings
from collections.abc import Sized

import torch
from torch.utils.data import DataLoader, IterableDataset

from raysearch.determinism import GeneratorStates
from raysearch.errors import ConfigError, TaskError
from raysearch.evaluation import Batch, batch_size, training_batches
from raysearch.evaluation.batches import check_dense, is_map_style, take, tensors_of
from raysearch.pipeline.inputs import Inputs
from raysearch.pipeline.preflight.float_model import number, run_checked
from raysearch.pipeline.samples import check_form
from raysearch.pipeline.user_code import user_code
from raysearch.training import Recipe
from raysearch.training.objective import Objective

FEW = 4
"""Samples of the step that is tried."""


def trains(inputs: Inputs) -> bool:
    """Whether the run will train."""
    return inputs.task.train is not None and not inputs.config.training.is_off


def check_training(inputs: Inputs, recipe: Recipe) -> None:
    """Read a training batch, and take one step on a few of its samples, on a copy.

    Args:
        inputs: the run's.
        recipe: builds the quantized model.

    Raises:
        TaskError: there is no batch, or the step fails, or its objective is no scalar with a gradient.
    """
    settings = inputs.config.training
    with user_code("reading the training data", "It must give batches like those of the calibration data."):
        batches = training_batches(inputs.task.train, settings.batch_size, inputs.config.seed, 0, 1)
        turn = next(iter(batches(0)), None)
    if turn is None:
        raise TaskError("the training data gave no batch; pass data with at least one batch a worker.")
    (batch,) = turn
    _check_sizes(inputs)
    with user_code("looking at the first training batch"):
        if not any(tensor.ndim for _, tensor in tensors_of(batch)):
            raise TaskError(
                f"the first training batch is a {type(batch).__name__} that holds no tensor with dimensions; "
                f"a batch is a tensor, or a tuple, list or dict of tensors whose dimension 0 counts samples."
            )
        check_dense(batch, "the first training batch")
        check_form(inputs.task, batch, "training")
        size = batch_size(batch)
    run_checked(inputs, batch if size <= FEW else _few(batch, FEW), "the first training batch")
    _step(recipe, batch if size == 1 else _few(batch, FEW), "the first training batch")
    if size > 1 and _ends_with_one(inputs.task.train, size):
        _step(recipe, _few(batch, 1), "a last batch of one sample")


def _check_sizes(inputs: Inputs) -> None:
    """Refuse more workers than there are batches, and a step of more samples than there are; tell of a batch.

    Raises:
        TaskError: some worker would have no batch.
        ConfigError: no step could be as large as asked for.
    """
    data, settings = inputs.task.train, inputs.config.training
    num_workers = settings.num_workers
    if num_workers > 1 and not inputs.config.cluster.num_workers:
        num_workers = 1
        warnings.warn(
            f"training.num_workers is {settings.num_workers}, and cluster.workers is 0, by which all is "
            f"computed in this process: training has one worker there.",
            stacklevel=3,
        )
    batches = training_batches(data, settings.batch_size, 0, 0, num_workers)
    if batches.num_turns == 0:
        units, advice = "batches", "more and smaller batches"
        if is_map_style(data):
            units, advice = "samples", "more"
        raise TaskError(
            f"the training data has fewer {units} than training.num_workers, which is {num_workers}: some "
            f"worker would have none. Give {advice}, or lower training.num_workers."
        )
    if not is_map_style(data):
        return
    global_size = settings.global_batch_size
    step_size = settings.batch_size * num_workers
    is_asked_for = global_size is None and "batch_size" in settings.model_fields_set
    if is_asked_for and step_size > len(data):
        # Taken, as torch's DataLoader takes it; but it is seldom meant.
        shared = f" on each of {num_workers} workers" if num_workers > 1 else ""
        warnings.warn(
            f"training.batch_size is {settings.batch_size}{shared}, and the training data has {len(data)} "
            f"samples: every optimizer step sees all of them, and an epoch is one step.",
            stacklevel=3,
        )
    if global_size is not None and global_size > len(data):
        raise ConfigError(
            f"training.global_batch_size is {global_size}, and the training data has {len(data)} samples; "
            f"lower it to {len(data)} or less."
        )


def _step(recipe: Recipe, batch: Batch, name: str) -> None:
    generators = GeneratorStates.now()
    model = recipe.build().model
    objective = Objective(recipe, model, recipe.model.eval()).train()
    size = batch_size(batch)
    advice = (
        "BatchNorm cannot train on a single sample: give batches of two or more (the loader's batch_size, "
        "`drop_last=True`)."
        if size == 1
        else "The quantized model is in training mode there, and is given the same batch as the float one."
    )
    try:
        with user_code(f"a training step on {name} ({size} samples)", advice):
            value = objective(batch)
            number(value, "the training objective")
            if not isinstance(value, torch.Tensor) or not value.requires_grad:
                raise TaskError(
                    "the training objective has no gradient: the task's loss or forward takes outputs apart "
                    "from the model (`.detach()`, `.item()`, numpy, torch.no_grad). Return a tensor that "
                    "depends on the model's weights."
                )
            value.backward()  # type: ignore[no-untyped-call]
    finally:
        generators.restore()


def _few(batch: Batch, count: int) -> Batch:
    """The first samples, or the whole batch where its tensors count samples differently."""
    sizes = {len(tensor) for _, tensor in tensors_of(batch) if tensor.ndim}
    return take(batch, 0, count) if len(sizes) == 1 else batch


def _ends_with_one(data: object, size: int) -> bool:
    """Whether a loader or a list of batches is known to have a batch of one sample."""
    if isinstance(data, list | tuple):
        return any(batch_size(batch) == 1 for batch in data)
    if not isinstance(data, DataLoader) or data.drop_last or isinstance(data.dataset, IterableDataset):
        return False
    return isinstance(data.sampler, Sized) and len(data.sampler) % size == 1
