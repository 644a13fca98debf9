"""Evaluate a model on batches: divergence, loss, metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raysearch.evaluation.batches import Batch, batch_size
from raysearch.evaluation.forward import Forward, Loss, frozen_eval
from raysearch.evaluation.joint_divergence import Objective
from raysearch.evaluation.metric import MetricFunction, as_metric
from raysearch.evaluation.microbatch import MicrobatchState, run_in_microbatches

ShardMetrics = tuple[int, dict[str, float | Tensor]]
"""Samples of a batch, and the metrics of a model on it; of what is known sample by sample, all values."""

RESERVED = ("divergence", "agreement", "loss")
"""Names of what is measured of every model; no metric may have one of them."""

MIN_BATCHES = 5
"""Batches from which the error of a mean over batches is told: of fewer it says little."""


@dataclass(frozen=True)
class Evaluation:
    """What a model was found to do.

    Attributes:
        values: name → mean over samples.
        errors: name → standard error of that. Of what is known of each sample (the divergence, and metrics
            that say so) over samples, which count as independent; a sample may be a window of many tokens.
            Of a number a batch over batches, where there are at least `MIN_BATCHES`.
    """

    values: dict[str, float]
    errors: dict[str, float]


@dataclass(frozen=True)
class Measures:
    """How a model is run, and what is measured of its outputs.

    Attributes:
        forward: (model, batch) → outputs.
        divergence: how outputs are compared with the reference.
        reference: the float model; without it neither divergence nor agreement is given.
        loss: (outputs, batch) → scalar.
        metrics: name → function (outputs, batch) → number.
    """

    forward: Forward
    divergence: Objective
    reference: nn.Module | None = None
    loss: Loss | None = None
    metrics: Mapping[str, MetricFunction] = field(default_factory=dict)


def evaluate_model(model: nn.Module, batches: Iterable[Batch], measures: Measures) -> Evaluation:
    """Means over samples, each batch weighted by its size.

    A batch that does not fit in memory is run in pieces, whose outputs are put together before they are
    judged, so that no loss or metric has to be a mean over samples.

    Args:
        model: the model to judge; left as found.
        batches: a list of batches.
        measures: what is measured.

    Returns:
        "divergence" and, of classes, "agreement" (with a reference), "loss" (with a loss), and metrics.

    Raises:
        UnitError: one sample alone does not fit in memory.
        TaskError: outputs of pieces cannot be put together.
    """
    return over_samples(evaluate_shards(model, batches, measures), measures.metrics)


def evaluate_shards(model: nn.Module, batches: Iterable[Batch], measures: Measures) -> list[ShardMetrics]:
    """What `evaluate_model` means over, batch by batch: so several processes can share the batches.

    Args:
        model: as there.
        batches: as there.
        measures: as there.
    """
    state = MicrobatchState()

    def run(module: nn.Module, batch: Batch) -> Any:
        return run_in_microbatches(lambda part: measures.forward(module, part), batch, state)

    judged: list[ShardMetrics] = []
    for batch in batches:
        values = _one(model, batch, run, measures)
        judged.append((batch_size(batch), values))
    return judged


def over_samples(judged: Iterable[ShardMetrics], metrics: Mapping[str, MetricFunction]) -> Evaluation:
    """Means over samples, summed in the order of the shards, and their standard errors.

    Args:
        judged: of `evaluate_shards`.
        metrics: its metrics.
    """
    means: dict[str, float] = {}
    samples: dict[str, list[Tensor]] = {}
    batches: dict[str, list[tuple[int, float]]] = {}
    count = 0
    for size, shard in judged:
        count += size
        for name, value in shard.items():
            if isinstance(value, Tensor):
                samples.setdefault(name, []).append(value)
                value = float(value.mean())
            else:
                batches.setdefault(name, []).append((size, value))
            means[name] = means.get(name, 0.0) + size * value
    values = {name: total / count for name, total in means.items()}
    errors = {name: _error_over_batches(parts) for name, parts in batches.items()}
    for name, parts in samples.items():
        every = torch.cat(parts)
        stderr = float(every.std() / math.sqrt(len(every))) if len(every) > 1 else math.nan
        if name in metrics:
            metric = as_metric(metrics[name])
            stderr = metric.error_of(values[name], stderr)
            values[name] = metric.value_of(values[name])
        errors[name] = stderr
    return Evaluation(values, {name: stderr for name, stderr in errors.items() if math.isfinite(stderr)})


def _error_over_batches(parts: Sequence[tuple[int, float]]) -> float:
    """Standard error of a mean of which only each batch's size and mean are known; NaN where they are few."""
    if len(parts) < MIN_BATCHES:
        return math.nan
    sizes, means = map(np.asarray, zip(*parts, strict=True))
    shares = sizes / sizes.sum()
    spread = (shares * (means - (shares * means).sum())) ** 2
    return math.sqrt(float(spread.sum()) * len(parts) / (len(parts) - 1))


def _one(model: nn.Module, batch: Batch, run: Forward, measures: Measures) -> dict[str, float | Tensor]:
    values: dict[str, float | Tensor] = {}
    divergence, reference = measures.divergence, measures.reference
    with frozen_eval(model), torch.no_grad():
        outputs = run(model, batch)
        if reference is not None:
            with frozen_eval(reference):
                target = divergence.judged(run(reference, batch), batch)
            judged = divergence.judged(outputs, batch)
            values["divergence"] = divergence.per_sample(judged, target).cpu()
            agreement = divergence.agreement(judged, target)
            if agreement is not None:
                values["agreement"] = agreement
        if measures.loss is not None:
            values["loss"] = float(measures.loss(outputs, batch))
        for name, function in measures.metrics.items():
            metric = as_metric(function)
            if metric.per_sample:
                values[name] = metric.samples(outputs, batch)
            else:
                values[name] = float(metric(outputs, batch))
    return values
