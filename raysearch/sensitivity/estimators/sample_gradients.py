"""Squared norms of per-sample weight gradients of many weights at once, for given output cotangents.

For sample n with the output z_n, the weight W and a cotangent s_n, what is computed is ‖J_nᵀ s_n‖²,
J_n = ∂z_n/∂W. Two ways lead there. The usual one reads the layer's input and the cotangent of its output, for
all samples in one backward (`layer_norms`); it needs to know which axis of those tensors counts the samples.
Where that is not known, or the weight is used by something that is no layer, each sample gets a forward and
a backward of its own. Which way a weight takes is found once on a few samples, by comparison with autograd's
own gradients (`Plan`), so no model is ever assumed to be well-behaved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raysearch.errors import TaskError
from raysearch.evaluation import Judged, Replica, ShardView, batch_size, run_in_microbatches
from raysearch.evaluation.batches import Batch, map_tensors, take, tensors_of
from raysearch.evaluation.curvature.graphs import require_gradients
from raysearch.evaluation.data_set import DataSet
from raysearch.evaluation.forward import frozen_eval
from raysearch.evaluation.outputs import flat_rows
from raysearch.sensitivity.estimators.captured_calls import (
    Call,
    CallCapture,
    parts_are_apart,
    reached_otherwise,
)
from raysearch.sensitivity.estimators.layer_norms import can_add, squared_norms
from raysearch.sensitivity.estimators.sample_layout import Layout, candidates, fits

CHUNK_SIZE = 8
"""Samples whose graph is held at once; fewer where outputs are large (`samples_at_once`)."""
PROBE_SAMPLES = 3
"""Samples on which a plan is made: few, as each of them costs a backward of its own."""
COLUMNS_PER_PASS = 2
"""Cotangents whose layer cotangents are held at once: an unfolded input serves them all."""


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
        by_weights: (data set, weights that are measured together) → their plan.
    """

    by_weights: dict[tuple[DataSet, tuple[str, ...]], Plan] = field(default_factory=dict)


def measure_in_chunks(
    view: ShardView,
    samples: Any,
    chunk_size: int,
    measure: Callable[[Any], Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Values of all samples of a shard, computed for some of them at a time.

    Parameters require gradients meanwhile (see `SampleGradients`), and are put back. Where a chunk does not
    fit in memory, halves of it are taken.

    Args:
        view: the shard.
        samples: what `measure` is called with parts of, as `take` cuts it.
        chunk_size: samples in a part.
        measure: part → weight id → [draws, samples of the part].

    Returns:
        weight id → [draws, samples].
    """
    chunks = []
    with frozen_eval(view.replica.model):
        require_gradients(view.replica)
        for start in range(0, batch_size(samples), chunk_size):
            chunks.append(
                run_in_microbatches(
                    measure,
                    take(samples, start, start + chunk_size),
                    view.replica.microbatches("gradients"),
                    combine=side_by_side,
                    name=f"{view.name} with its gradients",
                )
            )
    return side_by_side(chunks)


def side_by_side(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Values [draws, samples] of several pieces, sample after sample."""
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


class SampleGradients:
    """One forward of some samples, and the per-sample gradient norms of any number of output cotangents.

    The model's parameters must require gradients (`require_gradients`), and be put back by `frozen_eval`.

    Args:
        view: the shard that the samples are of.
        weights: ids of the weights.
        batch: the samples.

    Attributes:
        output: the judged output, [N, …], with its graph; of several all values of a sample side by side.
        judged: the same without its graph, each output by itself.
    """

    def __init__(self, view: ShardView, weights: tuple[str, ...], batch: Batch) -> None:
        self._replica = view.replica
        self._batch = batch
        self._weights = {name: view.replica.model.get_parameter(name) for name in weights}
        self._plan = _plan(view, weights)
        judged, self._calls = _forward(view.replica, self._weights, batch)
        self.output = flat_rows(judged)
        self.judged = map_tensors(judged, Tensor.detach)
        if tuple(call.signature for call in self._calls) != self._plan.signatures:
            # The model took another way for this batch, so nothing that is known of its layers holds.
            self._plan = Plan((), (), frozenset(weights))

    def squared_norms(self, columns: Sequence[Tensor]) -> dict[str, Tensor]:
        """‖J_nᵀ s_n‖² of every weight, column s and sample n, [columns, N] in float64.

        Work: one backward to the layers' outputs a column; no weight gradient of the batch.
        """
        shape = (len(columns), len(self.output))
        norms = {name: torch.zeros(shape, dtype=torch.float64) for name in self._weights}
        looped = {name: weight for name, weight in self._weights.items() if name in self._plan.looped}
        if looped:
            norms |= looped_norms(self._replica, looped, self._batch, columns)
        for start in range(0, len(columns), COLUMNS_PER_PASS):
            part = columns[start : start + COLUMNS_PER_PASS]
            for name, values in self._pass(part).items():
                norms[name][start : start + len(part)] = values
        return norms

    def _pass(self, columns: Sequence[Tensor]) -> dict[str, Tensor]:
        """The norms of the weights that are not looped, for a few columns."""
        calls: list[Call] = []
        layouts: list[Layout] = []
        for index, call in enumerate(self._calls):
            if call.weight not in self._plan.looped:
                calls.append(call)
                layouts.append(self._plan.layouts[index] or Layout(0))
        if not calls or not self.output.requires_grad:
            return {}
        edges = [call.output for call in calls]
        rows = [
            torch.autograd.grad(self.output, edges, column, retain_graph=True, allow_unused=True)
            for column in columns
        ]
        norms: dict[str, Tensor] = {}
        for name in dict.fromkeys(call.weight for call in calls):
            # What does not reach the output has no cotangent, in any column.
            reaching = [
                number
                for number, call in enumerate(calls)
                if call.weight == name and rows[0][number] is not None
            ]
            uses = [(calls[number], layouts[number]) for number in reaching]
            if uses:
                cotangents = [[row[number] for number in reaching] for row in rows]
                norms[name] = squared_norms(uses, cotangents, len(self.output))
        return norms


def looped_norms(
    replica: Replica, weights: Mapping[str, Tensor], batch: Batch, columns: Sequence[Tensor]
) -> dict[str, Tensor]:
    """‖J_nᵀ s_n‖² of every weight, column s and sample n, by a loop over the samples.

    For weights whose use no recorded call explains. Work: one forward a sample, and one gradient a sample and
    column: as many operations as N gradients of a batch of one. `torch.func.vmap` is not used: it cannot
    follow a task's own forward.

    Args:
        replica: the float model.
        weights: the parameters by id.
        batch: N samples.
        columns: cotangents s of the output, each [N, …].

    Returns:
        weight id → [columns, N] in float64.
    """
    num_samples = len(columns[0])
    norms = {name: torch.zeros(len(columns), num_samples, dtype=torch.float64) for name in weights}
    for index in range(num_samples):
        sample = take(batch, index, index + 1)
        outputs = replica.forward(replica.model, sample)
        output = flat_rows(replica.divergence.judged(outputs, sample))
        if not output.requires_grad:
            continue
        for number, column in enumerate(columns):
            gradients = torch.autograd.grad(
                output,
                list(weights.values()),
                column[index : index + 1],
                retain_graph=True,
                allow_unused=True,
            )
            for name, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    norms[name][number, index] = gradient.to_dense().double().square().sum().cpu()
    return norms


def _forward(replica: Replica, weights: Mapping[str, Tensor], batch: Batch) -> tuple[Judged, list[Call]]:
    with CallCapture(weights) as capture:
        outputs = replica.forward(replica.model, batch)
    judged = replica.divergence.judged(outputs, batch)
    num_samples = batch_size(batch)
    for _, output in tensors_of(judged):
        if len(output) == num_samples:
            continue
        raise TaskError(
            f"the model's output of shape {tuple(output.shape)} has {len(output)} rows for {num_samples} "
            f"samples; give Task(forward=...) a function whose output has one row a sample."
        )
    return judged, capture.calls


def _plan(view: ShardView, weights: tuple[str, ...]) -> Plan:
    plans = view.replica.cache.of(Plans).by_weights
    key = (view.data, weights)
    if key not in plans:
        # The same samples on every worker, so that all take the same way: those of the first shard that has
        # enough, whatever shard this unit is about.
        sizes = [min(PROBE_SAMPLES, batch_size(shard)) for shard in view.all_shards]
        batch = view.replica.shard(view.data, sizes.index(max(sizes)))
        plans[key] = _make_plan(view.replica, weights, take(batch, 0, PROBE_SAMPLES))
    return plans[key]


def _make_plan(replica: Replica, names: tuple[str, ...], batch: Batch) -> Plan:
    """Find the layout of every call's samples, and hold the norms against autograd's own gradients."""
    weights = {name: replica.model.get_parameter(name) for name in names}
    judged, calls = _forward(replica, weights, batch)
    output = flat_rows(judged)
    signatures = tuple(call.signature for call in calls)
    if not output.requires_grad:
        return Plan(signatures, (None,) * len(calls), frozenset())
    generator = torch.Generator().manual_seed(0)
    column = torch.randn(output.shape, generator=generator).to(output)
    alone = [_from_one_sample(output, calls, weights, column, index) for index in range(len(output))]
    layouts = [
        _layout(call, [sample.cotangents[number] for sample in alone]) for number, call in enumerate(calls)
    ]
    looped = reached_otherwise(output, calls, weights)
    for name in names:
        numbers = [number for number, call in enumerate(calls) if call.weight == name]
        uses = [(calls[number], layouts[number]) for number in numbers]
        cotangents = [
            sum((sample.cotangents[number] for sample in alone[1:]), alone[0].cotangents[number])
            for number in numbers
        ]
        expected = torch.stack([sample.norms[name] for sample in alone])
        if name not in looped and not _agrees(uses, cotangents, expected, output.dtype):
            looped.add(name)
    return Plan(signatures, tuple(layouts), frozenset(looped))


@dataclass(frozen=True)
class _FromOneSample:
    """What comes back from one sample alone.

    Attributes:
        cotangents: of the calls' outputs, each of the shape of the whole batch's.
        norms: weight id → squared norm of its gradient.
    """

    cotangents: list[Tensor]
    norms: dict[str, Tensor]


def _from_one_sample(
    output: Tensor, calls: list[Call], weights: Mapping[str, Tensor], column: Tensor, index: int
) -> _FromOneSample:
    alone = torch.zeros_like(column)
    alone[index] = column[index]
    inputs: list[Any] = [*(call.output for call in calls), *weights.values()]
    gradients = torch.autograd.grad(output, inputs, alone, retain_graph=True, allow_unused=True)
    cotangents = [
        torch.zeros(call.shape, device=output.device, dtype=output.dtype) if d is None else d
        for call, d in zip(calls, gradients, strict=False)
    ]
    norms = {name: torch.zeros((), dtype=torch.float64) for name in weights}
    for name, gradient in zip(weights, gradients[len(calls) :], strict=True):
        if gradient is not None:
            norms[name] = gradient.to_dense().double().square().sum().cpu()
    return _FromOneSample(cotangents, norms)


def _layout(call: Call, cotangents: list[Tensor]) -> Layout | None:
    """The first layout under which the cotangent from each sample alone lies in that sample's rows."""
    return next((layout for layout in candidates(call, len(cotangents)) if fits(layout, cotangents)), None)


def _agrees(
    calls: Sequence[tuple[Call, Layout | None]],
    cotangents: Sequence[Tensor],
    expected: Tensor,
    dtype: torch.dtype,
) -> bool:
    """Whether the norms read from the layers of one weight are those of autograd's gradients, [N]."""
    uses = [(call, layout) for call, layout in calls if layout is not None]
    if len(uses) < len(calls) or not parts_are_apart([call for call, _ in uses]) or not can_add(uses):
        return False
    if not uses:
        return bool((expected == 0).all())
    norms = squared_norms(uses, [cotangents], len(expected))[0]
    # Another kernel or another way to the squared norm may sum in another order; a wrong layout is far off.
    tolerance = 3 * torch.finfo(dtype).eps ** 0.5
    return bool(((norms - expected).abs() <= tolerance * expected.max()).all())
