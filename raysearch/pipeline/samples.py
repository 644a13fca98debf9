"""The data of a task, read once and looked at."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch

from raysearch.config import Config, ObjectiveConfig
from raysearch.errors import DataError
from raysearch.evaluation import Batch, batch_size, materialise, output_tensor, training_batches
from raysearch.evaluation.batches import map_tensors, own_batch, take, tensors_of
from raysearch.evaluation.forward import frozen_eval
from raysearch.evaluation.vocabulary.positions import SHARD_VALUES, suits_positions
from raysearch.pipeline.user_code import user_code
from raysearch.task import Task

_log = logging.getLogger(__name__)

DATA_ADVICE = (
    "It must give samples of a Dataset, or batches: tensors, or tuples, lists or dicts of them. Samples of "
    "several shapes need a DataLoader whose collate_fn pads them, or batches of one shape each."
)


@dataclass(frozen=True)
class Samples:
    """The data that was read, in shards: the size of a shard does not depend on the number of workers.

    Attributes:
        calibration: ranges, second moments, responses and traces are measured on it.
        validation: trials, metrics and the best epoch; the calibration sample where the task has none.
        traces: traces are measured on it where it is not empty.
        responses: responses are measured on it where it is not empty; nothing of it is in `calibration`. Else
            see `other_than_calibration`.
        test: nothing is chosen by it; empty where the task has none.
        largest_shard: samples of the largest shard that workers take; None: the settings alone say it.
    """

    calibration: list[Batch]
    validation: list[Batch]
    traces: list[Batch]
    responses: list[Batch] = field(default_factory=list)
    test: list[Batch] = field(default_factory=list)
    largest_shard: int | None = None

    def cut(self, largest_shard: int | None) -> Samples:
        """The same samples in shards of no more than so many."""
        if largest_shard is None:
            return self
        return Samples(
            _cut(self.calibration, largest_shard),
            _cut(self.validation, largest_shard),
            _cut(self.traces, largest_shard),
            _cut(self.responses, largest_shard),
            _cut(self.test, largest_shard),
            largest_shard,
        )

    def other_than_calibration(self) -> list[Batch]:
        """Samples that rounding was not fitted to: those for responses, or as many of validation, or none."""
        if self.responses or self.validation is self.calibration:
            return self.responses
        return first_of(self.validation, sum(map(batch_size, self.calibration)))


def read_samples(task: Task, config: Config) -> Samples:
    """Read a task's calibration and validation data once, and the first batch of its training data.

    Raises:
        DataError: data is empty, unreadable or not finite, or ends before the samples for responses.
    """
    sizes = config.calibration
    num_trace_samples = config.sensitivity.trace_samples
    # Read once for both, since an iterable may not give its batches twice.
    num_response_samples = config.sensitivity.response_samples
    most = max(sizes.num_samples + num_response_samples, num_trace_samples)
    with user_code("reading the calibration data", DATA_ADVICE):
        every = materialise(task.calibration, most, sizes.shard_size, "calibration")
    calibration = first_of(every, sizes.num_samples)
    traces = first_of(every, num_trace_samples) if num_trace_samples else []
    responses: list[Batch] = []
    if num_response_samples:
        responses = first_of(without_first(every, sizes.num_samples), num_response_samples)
        _check_responses(responses, num_response_samples, every)
    validation = calibration
    if task.validation is not None:
        limits = config.validation
        with user_code("reading the validation data", DATA_ADVICE):
            validation = materialise(task.validation, limits.num_samples, limits.shard_size, "validation")
    test: list[Batch] = []
    if task.test is not None:
        with user_code("reading the test data", DATA_ADVICE):
            test = materialise(task.test, config.validation.num_samples, config.validation.shard_size, "test")
    if task.train is not None:
        with user_code("reading the training data", DATA_ADVICE):
            training_batches(task.train, 1, 0, 0, 1)
    return Samples(calibration, validation, traces, responses, test)


def largest_shard(task: Task, batch: Batch, objective: ObjectiveConfig) -> int | None:
    """So many samples that their logits over a vocabulary are no more than `SHARD_VALUES`.

    None for any other output, and where one sample alone cannot be run: the checks that follow say why.
    Costs a forward of one sample.

    Args:
        task: what the user handed over.
        batch: the first calibration shard.
        objective: settings that say whether outputs are logits.
    """
    if objective.divergence not in ("auto", "kl") or objective.class_dim not in (None, -1):
        return None
    try:
        with frozen_eval(task.model), torch.no_grad():
            logits = output_tensor(task.run(task.model, own_batch(take(batch, 0, 1))))
    except (Exception, SystemExit) as error:
        _log.debug("one sample of a shard cannot be run alone: %r", error)
        return None
    if not suits_positions(logits, logits, -1):
        return None
    return max(1, SHARD_VALUES // logits[0].numel())


def _cut(shards: list[Batch], size: int) -> list[Batch]:
    parts: list[Batch] = []
    for shard in shards:
        total = batch_size(shard)
        if total <= size:
            parts.append(shard)
            continue
        # Cloned, so that a part does not carry the memory of all to the workers.
        parts += [
            map_tensors(take(shard, lo, min(lo + size, total)), torch.clone) for lo in range(0, total, size)
        ]
    return parts


def first_of(shards: list[Batch], num_samples: int) -> list[Batch]:
    """The shards of the first samples, the last one cut; all where the number is 0."""
    if not num_samples:
        return shards
    chosen: list[Batch] = []
    left = num_samples
    for shard in shards:
        if left <= 0:
            break
        size = batch_size(shard)
        chosen.append(shard if size <= left else take(shard, 0, left))
        left -= size
    return chosen


def without_first(shards: list[Batch], num_samples: int) -> list[Batch]:
    """The shards without the first samples, the first of them cut."""
    left = num_samples
    rest: list[Batch] = []
    for shard in shards:
        size = batch_size(shard)
        if left < size:
            rest.append(take(shard, left, size) if left else shard)
        left = max(left - size, 0)
    return rest


def _check_responses(responses: list[Batch], requested: int, every: list[Batch]) -> None:
    if not responses:
        total = sum(map(batch_size, every))
        raise DataError(
            f"sensitivity.response_samples is {requested}, but calibration.num_samples takes all {total} "
            f"samples of the calibration data. Give more of it, set calibration.num_samples below {total}, "
            f"or sensitivity.response_samples to 0."
        )


def one_of_each_form(batches: list[Batch]) -> list[tuple[int, Batch]]:
    """Batches that differ in structure, types or shapes beside the batch size, each with its index.

    Args:
        batches: of each form the first is taken.
    """
    forms: dict[str, tuple[int, Batch]] = {}
    for index, batch in enumerate(batches):
        parts = [(path, tensor.dtype, tuple(tensor.shape[1:])) for path, tensor in tensors_of(batch)]
        forms.setdefault(f"{type(batch).__name__} {parts}", (index, batch))
    return list(forms.values())


def check_form(task: Task, batch: Batch, name: str) -> None:
    """Refuse a sample that was given as a batch: the model's example input has a dimension more.

    Args:
        task: its default forward gives the first tensor to the model.
        batch: what was read.
        name: of the data.

    Raises:
        DataError: states both shapes and what to do.
    """
    inputs, example = list(tensors_of(batch)), list(tensors_of(task.example_inputs))
    if task.forward is not None or not inputs or not example:
        return
    path, tensor = inputs[0]
    expected = example[0][1]
    if tensor.ndim == expected.ndim - 1:
        raise DataError(
            f"the {name} data's {path} has shape {tuple(tensor.shape)}, and the example input "
            f"{tuple(expected.shape)}: samples, it seems, where batches should be. Lists and an "
            f"IterableDataset give batches; of samples make DataLoader(data, batch_size=...)."
        )
