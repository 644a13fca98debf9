"""Measured trials: the divergence of whole assignments on the calibration shards, on the pool."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from raysearch.cluster.pool import Key, Pool, UnitValue
from raysearch.evaluation import Replica
from raysearch.records import BitAssignment, QuantizerSetup, RangeTable
from raysearch.sensitivity.quantized import CACHE_BYTES, quantized_twin


class TrialEvaluator:
    """Calls the pool for a batch of trials: {number: assignment} → {number: mean divergence}.

    Work per unit (assignment × shard): one forward; a weight is quantized once a worker and width, as far as
    half of `cache_bytes` holds them. Bytes per unit: 16 back. A unit's key names the assignment, not the
    trial, so that what was measured before a crash is found again.
    """

    def __init__(
        self,
        setup: QuantizerSetup,
        ranges: RangeTable,
        pool: Pool,
        num_shards: int,
        data: str = "calibration",
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._setup, self._ranges, self._pool = setup, ranges, pool
        self._num_shards, self._data, self._cache_bytes = num_shards, data, cache_bytes

    def __call__(self, assignments: Mapping[int, BitAssignment]) -> dict[int, float]:
        """Mean divergence per sample; NaN where the quantized model's is not finite."""
        distinct = {assignment.digest(): assignment for assignment in assignments.values()}
        units: dict[Key, tuple[object, ...]] = {
            (digest, shard): (self._data, shard, assignment, self._cache_bytes)
            for digest, assignment in distinct.items()
            for shard in range(self._num_shards)
        }
        got = dict(self._pool.run(measure_shard, units, (self._setup, self._ranges)))
        means = {}
        for digest in distinct:
            parts = [got[digest, shard] for shard in range(self._num_shards)]
            size = sum(float(part["num_samples"]) for part in parts)
            mean = sum(float(part["divergence"]) for part in parts) / size
            means[digest] = mean if math.isfinite(mean) else math.nan
        return {number: means[assignment.digest()] for number, assignment in assignments.items()}


def measure_shard(
    replica: Replica,
    setup: QuantizerSetup,
    ranges: RangeTable,
    data: str,
    shard: int,
    assignment: BitAssignment,
    cache_bytes: int = CACHE_BYTES,
) -> UnitValue:
    """Unit: Σ divergence of one assignment over one shard, and the shard's size."""
    reference = replica.float_outputs(data, shard)
    twin = quantized_twin(replica, setup, ranges, cache_bytes)
    outputs = twin.outputs(replica, assignment, data, shard)
    values = replica.divergence.per_sample(outputs, reference)
    return {
        "divergence": np.array(float(values.sum())),
        "num_samples": np.array(float(len(values))),
    }
