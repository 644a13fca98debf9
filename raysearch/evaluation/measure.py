"""Evaluate a model on batches: divergence, loss, metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from raysearch.evaluation.batches import Batch, batch_size
from raysearch.evaluation.forward import Forward, Loss, frozen_eval
from raysearch.evaluation.joint_divergence import Objective
from raysearch.evaluation.metric import MetricFunction
from raysearch.evaluation.microbatch import MicrobatchState, run_in_microbatches

ShardMetrics = tuple[int, dict[str, float]]
"""Samples of a batch, and the metrics of a model on it."""

RESERVED = ("divergence", "agreement", "loss")
"""Names of what is measured of every model; no metric may have one of them."""


def evaluate_model(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    forward: Forward,
    divergence: Objective,
    reference: nn.Module | None = None,
    loss: Loss | None = None,
    metrics: Mapping[str, MetricFunction] | None = None,
) -> dict[str, float]:
    """Means over samples, each batch weighted by its size.

    A batch that does not fit in memory is run in pieces, whose outputs are put together before they are
    judged, so that no loss or metric has to be a mean over samples.

    Args:
        model: the model to judge; left as found.
        batches: a list of batches.
        forward: (model, batch) → outputs.
        divergence: how outputs are compared with the reference.
        reference: the float model; without it neither divergence nor agreement is given.
        loss: (outputs, batch) → scalar.
        metrics: name → function (outputs, batch) → number.

    Returns:
        "divergence" and "agreement" (with a reference), "loss" (with a loss), and the metrics by name.

    Raises:
        UnitError: one sample alone does not fit in memory.
        TaskError: outputs of pieces cannot be put together.
    """
    judged = evaluate_shards(
        model,
        batches,
        forward=forward,
        divergence=divergence,
        reference=reference,
        loss=loss,
        metrics=metrics,
    )
    return mean_over_samples(judged)


def evaluate_shards(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    forward: Forward,
    divergence: Objective,
    reference: nn.Module | None = None,
    loss: Loss | None = None,
    metrics: Mapping[str, MetricFunction] | None = None,
) -> list[ShardMetrics]:
    """What `evaluate_model` means over, batch by batch: so several processes can share the batches.

    Args:
        model: see `evaluate_model`, as the others.
        batches: the same.
        forward: the same.
        divergence: the same.
        reference: the same.
        loss: the same.
        metrics: the same.
    """
    state = MicrobatchState()

    def run(module: nn.Module, batch: Batch) -> Any:
        return run_in_microbatches(lambda part: forward(module, part), batch, state)

    judged: list[ShardMetrics] = []
    for batch in batches:
        values = _one(model, batch, run, divergence, reference, loss, metrics or {})
        judged.append((batch_size(batch), values))
    return judged


def mean_over_samples(judged: Iterable[ShardMetrics]) -> dict[str, float]:
    """Means over samples, summed in the order of the shards."""
    totals: dict[str, float] = {}
    count = 0
    for size, values in judged:
        count += size
        for name, value in values.items():
            totals[name] = totals.get(name, 0.0) + size * value
    return {name: total / count for name, total in totals.items()}


def _one(
    model: nn.Module,
    batch: Batch,
    run: Forward,
    divergence: Objective,
    reference: nn.Module | None,
    loss: Loss | None,
    metrics: Mapping[str, MetricFunction],
) -> dict[str, float]:
    values: dict[str, float] = {}
    with frozen_eval(model), torch.no_grad():
        outputs = run(model, batch)
        if reference is not None:
            with frozen_eval(reference):
                target = divergence.judged(run(reference, batch), batch)
            judged = divergence.judged(outputs, batch)
            values["divergence"] = float(divergence.per_sample(judged, target).mean())
            values["agreement"] = divergence.agreement(judged, target)
        if loss is not None:
            values["loss"] = float(loss(outputs, batch))
        for name, metric in metrics.items():
            values[name] = float(metric(outputs, batch))
    return values
