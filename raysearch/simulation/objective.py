"""The measured objective of whole assignments: divergence, the task's loss or a metric, shard by shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raysearch.cluster.pool import Key, Pool, UnitValue
from raysearch.errors import ConfigError
from raysearch.evaluation import DataSet, Judged, Replica, batch_size, run_in_microbatches, shard_name
from raysearch.records import BitAssignment, QuantizerSetup, RangeTable
from raysearch.simulation.simulated_model import simulated_model
from raysearch.simulation.weight_cache import CACHE_BYTES

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Judgement:
    """How outputs are judged, and on what.

    Attributes:
        objective: "divergence" (per sample, no labels), "loss" (the task's, one value a shard), or the name
            of a metric of the task (one value a shard).
        metric: the metric's function, for a metric.
        per_sample: for the divergence, one value a sample; else one a shard.
        data: the data set whose shards are run.
    """

    objective: str = "divergence"
    metric: Any = None
    per_sample: bool = True
    data: DataSet = DataSet.SEARCH


class MeasuredObjective:
    """Measures assignments on some shards: (values [n], samples each stands for [n]) per shard.

    Work per unit (assignment × shard): one forward of the quantized model, and one of the float model per
    worker and shard. Bytes per unit: 16 a value back. A unit's key names the assignment and the shard, not
    the trial, so that what was measured before a crash is found again.

    Args:
        setup: the quantizers.
        ranges: their ranges.
        pool: runs the units.
        judgement: how outputs are judged, and on what.
        cache_bytes: what a worker may keep of quantized weights; see `SimulatedModel`.
        on_gpu: whether workers compute on GPUs; it only decides what is measured first.
    """

    def __init__(
        self,
        setup: QuantizerSetup,
        ranges: RangeTable,
        pool: Pool,
        judgement: Judgement = Judgement(),
        *,
        cache_bytes: int = CACHE_BYTES,
        on_gpu: bool = False,
    ) -> None:
        self._on_gpu = on_gpu
        self._shared = (setup, ranges, judgement, cache_bytes)
        self._pool = pool

    def __call__(
        self, assignments: Mapping[int, BitAssignment], shards: Sequence[int]
    ) -> dict[int, dict[int, tuple[FloatArray, FloatArray]]]:
        """Trial number → shard → values and their sizes; equal assignments are measured once."""
        digests = {number: assignment.digest() for number, assignment in assignments.items()}
        distinct = {digests[number]: assignment for number, assignment in assignments.items()}
        units: dict[Key, tuple[Any, ...]] = {}
        for digest, shard in self._in_turn(distinct, shards):
            units[digest, shard] = (distinct[digest], shard)
        answers = dict(self._pool.run(measure_values, units, self._shared))
        measured: dict[int, dict[int, tuple[FloatArray, FloatArray]]] = {}
        for number, digest in digests.items():
            measured[number] = {}
            for shard in shards:
                answer = answers[digest, shard]
                measured[number][shard] = (answer["values"], answer["sizes"])
        return measured

    def _in_turn(self, digests: Iterable[str], shards: Iterable[int]) -> Iterator[tuple[str, int]]:
        """Shard by shard, since a worker holds the float outputs of the last ones only; on a GPU not.

        There an assignment's weights are what is dear, since codes come from the host.
        """
        if self._on_gpu:
            return product(digests, shards)
        return ((digest, shard) for shard in shards for digest in digests)


def measure_values(
    replica: Replica,
    setup: QuantizerSetup,
    ranges: RangeTable,
    judgement: Judgement,
    cache_bytes: int,
    assignment: BitAssignment,
    shard: int,
) -> UnitValue:
    """Unit: the objective of one assignment on one shard.

    Where the shard does not fit in memory, the forward is run in pieces and the outputs are put together: a
    loss or a metric always sees the outputs of the whole shard, so it need not be a mean over samples.

    Args:
        replica: what the worker holds.
        setup: the quantizers.
        ranges: their ranges.
        judgement: how outputs are judged.
        cache_bytes: see `MeasuredObjective`.
        assignment: what is measured.
        shard: index of the shard.

    Raises:
        ConfigError: the objective is "loss" and the task has none.
        UnitError: one sample alone does not fit in memory.
        TaskError: a loss or a metric is wanted, and outputs of pieces cannot be put together.
    """
    model = simulated_model(replica, setup, ranges, cache_bytes)
    if judgement.objective == "divergence":
        outputs = model.outputs(replica, assignment, judgement.data, shard)
        return _divergences(replica, outputs, judgement, shard)
    judge = replica.loss if judgement.objective == "loss" else judgement.metric
    if judge is None:
        raise ConfigError(f"the objective is '{judgement.objective}', but the Task has no such function.")
    batch = replica.shard(judgement.data, shard)
    raw_outputs = model.raw_outputs(replica, assignment, judgement.data, shard)
    with torch.no_grad():
        value = float(judge(raw_outputs, batch))
    return {"values": np.array([value]), "sizes": np.array([float(batch_size(batch))])}


def _divergences(replica: Replica, outputs: Judged, judgement: Judgement, shard: int) -> UnitValue:
    """The divergence of some outputs from the float model's, per sample or of the shard."""

    def divergence(pair: tuple[Judged, Judged]) -> Tensor:
        return replica.divergence.per_sample(*pair).cpu()

    values = run_in_microbatches(
        divergence,
        (outputs, replica.float_outputs(judgement.data, shard)),
        # In float64 and row by row, so pieces give the same bits.
        replica.microbatches("judging"),
        name=shard_name(judgement.data, shard),
    ).numpy()
    if judgement.per_sample:
        return {"values": values.astype(np.float64), "sizes": np.ones(len(values))}
    return {"values": np.array([values.mean()]), "sizes": np.array([float(len(values))])}
