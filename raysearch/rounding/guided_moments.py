"""Second moments weighted by how much the divergence feels each vector's outputs: H = Σ g² u uᵀ.

With s the cotangent of the model's outputs in a draw, E[s sᵀ] = Λ the divergence's Hessian there, and g what
comes back from s at a layer's output, E[(gᵀ ΔW u)²] is what a change ΔW does to the divergence through the
vector u. Taken alike for all output channels, it is ‖ΔW u‖² times the mean of g² over them.

G  groups of rows that read different inputs    d  inputs of a row    v  vectors
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from raysearch.cluster.pool import UnitValue
from raysearch.errors import DataError, TaskError
from raysearch.evaluation import (
    Batch,
    DataSet,
    Judged,
    Replica,
    ShardView,
    batch_size,
    run_in_microbatches,
)
from raysearch.evaluation.batches import map_tensors, take
from raysearch.evaluation.curvature.graphs import require_gradients, samples_at_once, with_edge
from raysearch.evaluation.curvature.joint_factor import as_cotangent, objective_factor
from raysearch.evaluation.curvature.output_factor import random_signs
from raysearch.evaluation.forward import frozen_eval
from raysearch.evaluation.outputs import flat_rows
from raysearch.rounding.layers import LayerCall, counted_vectors, read_calls, where_counted
from raysearch.rounding.recurrent import recurrent_calls
from raysearch.rounding.second_moments import Moments, MomentTap, Reader, merge_moments, moment_of
from raysearch.seeding import derive_seed

_Result = TypeVar("_Result")

NUM_DRAWS = 1
"""Cotangents of the outputs that are drawn."""

LEAST_SHARE = 0.1
"""What a vector counts at least, as a share of the mean: samples that are certain are still to stay so."""

SAMPLES_AT_ONCE = 32
"""Samples whose graph is held at once; fewer where outputs are large (`samples_at_once`)."""


def observe_guided_moments(
    replica: Replica, weights: Sequence[str], seed: int, first: int, last: int
) -> UnitValue:
    """Unit: the guided second moments of all weights on the calibration shards first … last−1.

    A vector counts with the mean of g² over the outputs made of it and over the draws, but at least
    `LEAST_SHARE` of the mean of that over all vectors of the samples whose graph is held together. A call
    whose output no finite gradient reaches gives plain moments, apart from the guided ones.

    Work: one forward a shard and one backward to the layers' outputs a draw; products as for plain moments,
    but for each weight by itself. Memory: as there, with the graph of `SAMPLES_AT_ONCE` samples. The seed of
    a draw is made of the run's, the shard and the number of the draw.

    Args:
        replica: holds the float model and the calibration shards.
        weights: names of the parameters.
        seed: the run's seed.
        first: first shard.
        last: the shard behind the last.

    Raises:
        DataError: the model's output is not finite; names the shard.
        TaskError: a layer's input is overwritten in the forward; names the weight.
    """
    parameters = {name: replica.model.get_parameter(name) for name in weights}

    def finish(tap: GuidedTap, part: Batch, output: Tensor, cotangents: Iterator[Tensor]) -> Moments:
        return tap.finish_guided(output, cotangents, batch_size(part))

    total = Moments()
    for index in range(first, last):
        view = ShardView(replica, DataSet.CALIBRATION, index)
        total = merge_moments([total, *guided_pieces(view, parameters, seed, finish, merge_moments)])
    return total.to_value()


def guided_pieces(
    view: ShardView,
    parameters: Mapping[str, Tensor],
    seed: int,
    finish: Callable[[GuidedTap, Batch, Tensor, Iterator[Tensor]], _Result],
    combine: Callable[[Sequence[_Result]], _Result],
) -> Iterator[_Result]:
    """What is made of the float model's forward on the pieces of a shard, in order.

    Args:
        view: the shard.
        parameters: quantizer id → the parameter, of the weights whose reads are noted.
        seed: the run's.
        finish: of the tap, the piece, what is judged of the output (a row a sample, with its graph) and its
            cotangents, one a draw.
        combine: what several give.
    """
    replica, batch = view.replica, view.batch()
    draws = _Draws(view, seed)

    def collect(part: Batch) -> _Result:
        tap = GuidedTap(parameters, replica.counted(part))
        with tap:
            outputs = replica.forward(replica.model, part)
        judged = replica.divergence.judged(outputs, part)
        with draws.taken_back_on_failure():
            cotangents = draws.of(map_tensors(judged, Tensor.detach))
            return finish(tap, part, flat_rows(judged), cotangents)

    with frozen_eval(replica.model):
        step = samples_at_once(view, take(batch, 0, 1), SAMPLES_AT_ONCE)
        require_gradients(replica)
        for start in range(0, batch_size(batch), step):
            yield run_in_microbatches(
                collect,
                take(batch, start, start + step),
                replica.microbatches("gradients"),
                combine=combine,
                name=f"{view.name} with its gradients",
            )


class _Draws:
    """Cotangents s = F ε of the outputs, F Fᵀ = Λ and ε random signs, of one sample after the other."""

    def __init__(self, view: ShardView, seed: int) -> None:
        self._view = view
        self._generators = [
            torch.Generator().manual_seed(derive_seed(seed, "guided-moments", view.index, draw))
            for draw in range(NUM_DRAWS)
        ]

    def of(self, outputs: Judged) -> Iterator[Tensor]:
        """The draws for the next samples, in the shape of `flat_rows` of their outputs."""
        if not bool(torch.isfinite(flat_rows(outputs)).all()):
            raise DataError(
                f"the model's output is not finite on {self._view.name}, so nothing says what its layers "
                f"count. Mend the data or the model."
            )
        divergence = self._view.replica.divergence
        factor = objective_factor(outputs, divergence)
        for generator in self._generators:
            signs = random_signs(factor.shape, 0, generator).to(factor.trace())
            yield as_cotangent(factor.apply(signs), outputs, divergence)

    @contextmanager
    def taken_back_on_failure(self) -> Iterator[None]:
        """Halves of a piece that did not fit in memory draw what the piece would have drawn."""
        before = [generator.get_state() for generator in self._generators]
        try:
            yield
        except Exception:
            for generator, state in zip(self._generators, before, strict=True):
                generator.set_state(state)
            raise


@dataclass
class Read:
    """One read of a weight, and where the gradient of what was made of it comes by.

    Attributes:
        reader: the weight.
        call: what was called, with a detached input.
        version: of the input when it was read.
        edge: of the autograd graph, at the call's output; None where it has none.
    """

    reader: Reader
    call: LayerCall
    version: int
    edge: GradientEdge | None = None


class GuidedTap(MomentTap):
    """While active, keeps what the given parameters are multiplied with until the gradients are there.

    Args:
        parameters: quantizer id → the parameter.
    """

    def __init__(self, parameters: Mapping[str, Tensor], counted: Tensor | None = None) -> None:
        super().__init__(parameters, counted)
        self._reads: list[Read] = []

    def on_call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note the operands of a layer's call, and the edge of the graph that its output leaves by."""
        with torch.no_grad():
            # What is within a recurrent function leaves no edge.
            self._reads.extend(self._reads_of(recurrent_calls(func, args)))
        reads = self._reads_of(read_calls(func, args, kwargs))
        output = func(*args, **kwargs)
        self._reads.extend(reads)
        if not reads or not isinstance(output, Tensor) or not output.requires_grad:
            return output
        output, edge = with_edge(output)
        for read in reads:
            read.edge = edge
        return output

    def finish_guided(self, output: Tensor, cotangents: Iterator[Tensor], num_samples: int) -> Moments:
        """The sums of the forward that has ended.

        Args:
            output: what is judged of it, a row a sample, with its graph.
            cotangents: of that output, one a draw.
            num_samples: how many samples it was of.
        """
        total = Moments({}, num_samples)
        for read, squares_gv in self.counting_reads(output, cotangents):
            moment = moment_of(read.call.geometry, read.call.input, read.call.weight, squares_gv)
            reader = replace(read.reader, is_guided=squares_gv is not None)
            total = merge_moments([total, Moments({(reader,): moment})])
        return total

    def counting_reads(
        self, output: Tensor, cotangents: Iterator[Tensor]
    ) -> Iterator[tuple[Read, Tensor | None]]:
        """What was read, in the order of the calls, and what each vector of it counts.

        Args:
            output: what is judged of it, a row a sample, with its graph.
            cotangents: of that output, one a draw.
        """
        squares = self._mean_squares(output, cotangents)
        for read, squares_gv in zip(self._reads, squares, strict=True):
            if read.call.input._version != read.version:
                raise TaskError(
                    f"what the weight '{read.reader.weight}' reads is overwritten before the forward ends, "
                    f"so it is gone when the gradients are there. Set rounding.guided to false."
                )
            source = where_counted(read.call.geometry, read.call.input, self.counted)
            yield replace(read, call=replace(read.call, input=source)), squares_gv

    def _mean_squares(self, output: Tensor, cotangents: Iterator[Tensor]) -> list[Tensor | None]:
        """What each vector of each read counts, [G, v]; None where no finite gradient says it."""
        edges = [read.edge for read in self._reads if read.edge is not None]
        if not edges or not output.requires_grad:
            return [None] * len(self._reads)
        sums: dict[int, Tensor] = {}
        for cotangent in cotangents:
            gradients = torch.autograd.grad(output, edges, cotangent, retain_graph=True, allow_unused=True)
            numbers = [number for number, read in enumerate(self._reads) if read.edge is not None]
            for number, gradient in zip(numbers, gradients, strict=True):
                if gradient is not None:
                    squares_gv = mean_squares(self._reads[number].call, gradient)
                    sums[number] = sums[number] + squares_gv if number in sums else squares_gv
        return [self._floored(read, sums.get(number)) for number, read in enumerate(self._reads)]

    def _floored(self, read: Read, squares_gv: Tensor | None) -> Tensor | None:
        if squares_gv is None:
            return None
        rows = counted_vectors(read.call.geometry, read.call.input, self.counted)
        return _floored(squares_gv if rows is None else squares_gv[:, rows])

    def _reads_of(self, calls: Iterable[LayerCall]) -> list[Read]:
        reads = []
        for call in calls:
            reader = self._reader_of(call.weight, call.geometry)
            if reader is not None:
                own = replace(call, input=call.input.detach(), weight=call.weight.detach())
                reads.append(Read(reader, own, call.input._version))
        return reads


def mean_squares(call: LayerCall, cotangent: Tensor) -> Tensor:
    """The mean of g² over the outputs that are made of each vector, in the order of `vectors`, [G, v].

    Args:
        call: a layer's.
        cotangent: g, of the shape of its output.
    """
    geometry, squares = call.geometry, cotangent.double().square()
    if geometry.kernel:
        batched = squares if squares.ndim == len(geometry.kernel) + 2 else squares[None]
        apart = batched.reshape(len(batched), geometry.groups, -1, prod(batched.shape[2:]))
        return apart.mean(2).transpose(0, 1).flatten(1)
    if call.order is not None:
        return squares.permute(call.order).mean(-1).reshape(1, -1)
    means = squares.mean(geometry.axis)
    if geometry.groups == 1:
        return means.reshape(1, -1)
    return means.movedim(-2, 0).flatten(1)


def _floored(squares_gv: Tensor) -> Tensor | None:
    mean_square = squares_gv.mean() / NUM_DRAWS
    if not bool(torch.isfinite(mean_square)) or not bool(mean_square > 0):
        return None
    return (squares_gv / NUM_DRAWS).clamp_min(LEAST_SHARE * mean_square)
