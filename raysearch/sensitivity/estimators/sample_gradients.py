"""Squared norms of per-sample weight gradients of many weights at once, for given output cotangents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from raysearch.errors import TaskError
from raysearch.evaluation import DataSet, Replica, batch_size, output_tensor
from raysearch.evaluation.batches import Batch, take
from raysearch.sensitivity.estimators.captured_calls import (
    Call,
    CallCapture,
    parts_are_apart,
    reached_otherwise,
)
from raysearch.sensitivity.estimators.layer_norms import can_add, squared_norms
from raysearch.sensitivity.estimators.per_sample_fallback import looped_norms
from raysearch.sensitivity.estimators.sample_layout import Layout, candidates, fits

PROBE_SAMPLES = 3
COLUMNS_PER_PASS = 2
"""Cotangents whose layer cotangents are held at once: an unfolded input serves them all."""
MAX_OUTPUTS = 2**20
"""Output values whose graph and float64 factors are held at once: 8 MiB each."""


@dataclass(frozen=True)
class Plan:
    """How each weight's per-sample norms are found.

    Attributes:
        signatures: of the calls of a forward, in order.
        layouts: of each call; None where none is needed or fits.
        looped: weights whose samples are taken one by one.
    """

    signatures: tuple[tuple[Any, ...], ...]
    layouts: tuple[Layout | None, ...]
    looped: frozenset[str]


@dataclass
class Plans:
    """The plans that a worker has made; see `WorkerCache.of`.

    Attributes:
        by_weights: the weights that are measured together → their plan.
    """

    by_weights: dict[tuple[str, ...], Plan] = field(default_factory=dict)


class SampleGradients:
    """One forward of some samples, and the per-sample gradient norms of any number of output cotangents.

    The model's parameters must require gradients (`enabled`), and be put back by `frozen_eval`.

    Attributes:
        output: the judged output, [N, …], with its graph.
    """

    def __init__(self, replica: Replica, weights: tuple[str, ...], batch: Batch) -> None:
        self._replica, self._batch = replica, batch
        self._weights = {name: replica.model.get_parameter(name) for name in weights}
        self._plan = _plan(replica, weights)
        self.output, self._calls = _forward(replica, self._weights, batch)
        if tuple(call.signature for call in self._calls) != self._plan.signatures:
            # The model took another way for this batch.
            self._plan = Plan((), (), frozenset(weights))

    def squared_norms(self, columns: Sequence[Tensor]) -> dict[str, Tensor]:
        """‖J_nᵀ s_n‖² of every weight, column s and sample n, [columns, N] in float64.

        Work: one backward to the layers' outputs a column; no weight gradient of the batch.
        """
        num_samples = len(self.output)
        found = {name: torch.zeros(len(columns), num_samples, dtype=torch.float64) for name in self._weights}
        looped = {name: self._weights[name] for name in self._weights if name in self._plan.looped}
        if looped:
            found |= looped_norms(self._replica, looped, self._batch, columns)
        for start in range(0, len(columns), COLUMNS_PER_PASS):
            part = columns[start : start + COLUMNS_PER_PASS]
            for name, norms in self._pass(part).items():
                found[name][start : start + len(part)] = norms
        return found

    def _pass(self, columns: Sequence[Tensor]) -> dict[str, Tensor]:
        used = [i for i, call in enumerate(self._calls) if call.weight not in self._plan.looped]
        if not used or not self.output.requires_grad:
            return {}
        edges = [self._calls[index].output for index in used]
        rows = [
            torch.autograd.grad(self.output, edges, column, retain_graph=True, allow_unused=True)
            for column in columns
        ]
        found: dict[str, Tensor] = {}
        for name in dict.fromkeys(self._calls[index].weight for index in used):
            # What does not reach the output has no cotangent, in any column.
            ours = [p for p, i in enumerate(used) if self._calls[i].weight == name and rows[0][p] is not None]
            uses = [(self._calls[used[p]], self._plan.layouts[used[p]] or Layout(0)) for p in ours]
            if uses:
                cotangents = [[row[p] for p in ours] for row in rows]
                found[name] = squared_norms(uses, cotangents, len(self.output))
        return found


def samples_at_once(replica: Replica, one: Batch, most: int) -> int:
    """At most `most` samples, and no more than have `MAX_OUTPUTS` values in all, as known from one sample.

    Raises:
        UnitError: one sample alone does not fit in memory.
    """
    return max(1, min(most, MAX_OUTPUTS // replica.run(replica.model, one).numel()))


def enable(replica: Replica) -> None:
    """Let every parameter require gradients, so that all layers' outputs are in the graph."""
    for parameter in replica.model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())


def _forward(replica: Replica, weights: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, list[Call]]:
    with CallCapture(weights) as capture:
        outputs = replica.forward(replica.model, batch)
    output, size = output_tensor(outputs), batch_size(batch)
    if len(output) != size:
        raise TaskError(
            f"the model's output of shape {tuple(output.shape)} has {len(output)} rows for {size} samples; "
            f"give Task(forward=...) a function whose output has one row a sample."
        )
    return output, capture.calls


def _plan(replica: Replica, weights: tuple[str, ...]) -> Plan:
    known = replica.cache.of(Plans).by_weights
    if weights not in known:
        shards = replica.shards[DataSet.CALIBRATION]
        # The same samples on every worker, so that all take the same way.
        largest = max(range(len(shards)), key=lambda index: min(PROBE_SAMPLES, batch_size(shards[index])))
        known[weights] = _make_plan(
            replica, weights, take(replica.shard(DataSet.CALIBRATION, largest), 0, PROBE_SAMPLES)
        )
    return known[weights]


def _make_plan(replica: Replica, names: tuple[str, ...], batch: Batch) -> Plan:
    """Find the layout of every call's samples, and hold the norms against autograd's own gradients."""
    weights = {name: replica.model.get_parameter(name) for name in names}
    output, calls = _forward(replica, weights, batch)
    if not output.requires_grad:
        return Plan(tuple(call.signature for call in calls), (None,) * len(calls), frozenset())
    generator = torch.Generator().manual_seed(0)
    column = torch.randn(output.shape, generator=generator).to(output)
    by_sample = [_one_sample(output, calls, weights, column, index) for index in range(len(output))]
    layouts = [
        _layout(call, [cotangents[number] for cotangents, _ in by_sample])
        for number, call in enumerate(calls)
    ]
    looped = reached_otherwise(output, calls, weights)
    for name in names:
        ours = [number for number, call in enumerate(calls) if call.weight == name]
        expected = torch.stack([gradients[name] for _, gradients in by_sample])
        if name not in looped and not _agrees(calls, layouts, ours, by_sample, expected, output):
            looped.add(name)
    return Plan(tuple(call.signature for call in calls), tuple(layouts), frozenset(looped))


_BySample = tuple[list[Tensor], dict[str, Tensor]]


def _one_sample(
    output: Tensor, calls: list[Call], weights: Mapping[str, Tensor], column: Tensor, index: int
) -> _BySample:
    """What comes back from one sample alone: cotangents of the calls, squared norms of the gradients."""
    alone = torch.zeros_like(column)
    alone[index] = column[index]
    wanted: list[Any] = [*(call.output for call in calls), *weights.values()]
    got = torch.autograd.grad(output, wanted, alone, retain_graph=True, allow_unused=True)
    cotangents = [
        torch.zeros(call.shape, device=output.device, dtype=output.dtype) if d is None else d
        for call, d in zip(calls, got, strict=False)
    ]
    zero = torch.zeros((), dtype=torch.float64)
    norms = {
        name: zero if gradient is None else gradient.to_dense().double().square().sum().cpu()
        for name, gradient in zip(weights, got[len(calls) :], strict=True)
    }
    return cotangents, norms


def _layout(call: Call, cotangents: list[Tensor]) -> Layout | None:
    return next((layout for layout in candidates(call, len(cotangents)) if fits(layout, cotangents)), None)


def _agrees(
    calls: list[Call],
    layouts: list[Layout | None],
    ours: list[int],
    by_sample: list[_BySample],
    expected: Tensor,
    output: Tensor,
) -> bool:
    uses = [(calls[number], layout) for number in ours if (layout := layouts[number]) is not None]
    if len(uses) < len(ours) or not parts_are_apart([call for call, _ in uses]) or not can_add(uses):
        return False
    if not uses:
        return bool((expected == 0).all())
    cotangents = [sum((row[number] for row, _ in by_sample[1:]), by_sample[0][0][number]) for number in ours]
    found = squared_norms(uses, [cotangents], len(by_sample))[0]
    tolerance = 3 * torch.finfo(output.dtype).eps ** 0.5
    return bool(((found - expected).abs() <= tolerance * expected.max()).all())
