"""The measured objective of whole assignments: divergence, the task's loss or a metric, shard by shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raysearch.cluster.pool import Key, Pool, UnitValue
from raysearch.errors import ConfigError
from raysearch.evaluation import Replica, batch_size, run_in_microbatches
from raysearch.evaluation.forward import frozen_eval
from raysearch.records import BitAssignment, QuantizerSetup, RangeTable
from raysearch.simulation.twin import CACHE_BYTES, quantized_twin

FloatArray = npt.NDArray[np.float64]


class MeasuredObjective:
    """Measures assignments on some shards: (values [n], samples each stands for [n]) per shard.

    Work per unit (assignment × shard): one forward of the quantized model, and one of the float model per
    worker and shard. Bytes per unit: 16 a value back. A unit's key names the assignment and the shard, not
    the trial, so that what was measured before a crash is found again.

    Args:
        setup: the quantizers.
        ranges: their ranges.
        pool: runs the units.
        objective: "divergence" (per sample, no labels), "loss" (the task's, one value a shard), or the name
            of a metric of the task (one value a shard).
        metric: the metric's function, for a metric.
        per_sample: for the divergence, one value a sample; else one a shard.
        data: the name of the replica's shards.
        cache_bytes: what a worker may keep of quantized weights; see `QuantizedTwin`.
    """

    def __init__(
        self,
        setup: QuantizerSetup,
        ranges: RangeTable,
        pool: Pool,
        *,
        objective: str = "divergence",
        metric: Any = None,
        per_sample: bool = True,
        data: str = "search",
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._shared = (setup, ranges, objective, metric, per_sample, data, cache_bytes)
        self._pool = pool

    def __call__(
        self, assignments: Mapping[int, BitAssignment], shards: Sequence[int]
    ) -> dict[int, dict[int, tuple[FloatArray, FloatArray]]]:
        """Trial number → shard → values and their sizes; equal assignments are measured once."""
        distinct = {assignment.digest(): assignment for assignment in assignments.values()}
        units: dict[Key, tuple[Any, ...]] = {
            (digest, shard): (assignment, shard)
            for digest, assignment in distinct.items()
            for shard in shards
        }
        got = dict(self._pool.run(measure_values, units, self._shared))
        return {
            number: {
                shard: (got[a.digest(), shard]["values"], got[a.digest(), shard]["sizes"]) for shard in shards
            }
            for number, a in assignments.items()
        }


def measure_values(
    replica: Replica,
    setup: QuantizerSetup,
    ranges: RangeTable,
    objective: str,
    metric: Any,
    per_sample: bool,
    data: str,
    cache_bytes: int,
    assignment: BitAssignment,
    shard: int,
) -> UnitValue:
    """Unit: the objective of one assignment on one shard.

    Where the shard does not fit in memory, the forward is run in pieces and the outputs are put together: a
    loss or a metric always sees the outputs of the whole shard, so it need not be a mean over samples.

    Raises:
        ConfigError: the objective is "loss" and the task has none.
        UnitError: one sample alone does not fit in memory.
        TaskError: a loss or a metric is wanted, and outputs of pieces cannot be put together.
    """
    twin = quantized_twin(replica, setup, ranges, cache_bytes)
    name = f"shard {shard} of the {data} data"
    if objective == "divergence":
        outputs = twin.outputs(replica, assignment, data, shard)

        def judged(part: tuple[Tensor, Tensor]) -> Tensor:
            return replica.divergence.per_sample(*part).cpu()

        pair = (outputs, replica.float_outputs(data, shard))
        # In float64 and row by row, so pieces give the same bits.
        each = run_in_microbatches(judged, pair, replica.microbatches("judging"), name=name)
        values = each.numpy()
        if per_sample:
            return {"values": values.astype(np.float64), "sizes": np.ones(len(values))}
        return {"values": np.array([values.mean()]), "sizes": np.array([float(len(values))])}
    judge = replica.loss if objective == "loss" else metric
    if judge is None:
        raise ConfigError(f"the objective is '{objective}', but the Task has no such function.")
    batch = replica.shard(data, shard)
    twin.apply(assignment)
    with frozen_eval(twin.model), torch.no_grad():
        found = run_in_microbatches(
            lambda part: replica.forward(twin.model, part), batch, replica.microbatches("forward"), name=name
        )
        value = float(judge(found, batch))
    return {"values": np.array([value]), "sizes": np.array([float(batch_size(batch))])}
