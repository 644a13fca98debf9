"""Samples for traces drawn by importance: few backward passes stand for many samples.

The per-sample trace varies by more than its mean from sample to sample, and a few samples hold most of it.
One forward shows which: u_i = Tr Λ_i, the trace of the divergence's Hessian in the outputs, 1 − ‖p_i‖² for
class probabilities p_i. Samples are drawn in proportion to it and weighted back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch

from raysearch.cluster.pool import Key, Pool, UnitValue
from raysearch.errors import DataError
from raysearch.evaluation import DataSet, Replica, ShardView, WorkerCache, shard_name
from raysearch.evaluation.batches import Batch, batch_size, join, joinable_form, pick
from raysearch.evaluation.curvature.joint_factor import objective_factor
from raysearch.evaluation.outputs import flat_rows
from raysearch.seeding import derive_seed

UNIFORM_SHARE = 0.1
"""Chance that a sample is drawn regardless of its curvature; no weight exceeds its inverse."""

Place = tuple[int, int]
"""(shard, row) of a sample in its data set."""


@dataclass(frozen=True)
class TraceSample:
    """The samples that traces are measured on.

    Attributes:
        data: the replica's data set.
        rows: per shard of the sample the places of its rows in the data; None: the data's own shards, whole.
        weights: per shard of the sample the weight of each row in the mean over all samples of the data;
            empty where all weigh 1.
    """

    data: DataSet = DataSet.CALIBRATION
    rows: tuple[tuple[Place, ...], ...] | None = None
    weights: tuple[tuple[float, ...], ...] = ()

    def weigh(self, shard: int, draws: np.ndarray) -> np.ndarray:
        """Draws [P, K] of a shard, so that their mean over all shards estimates that of the data."""
        return draws * np.array(self.weights[shard]) if self.weights else draws

    def view(self, replica: Replica, shard: int) -> ShardView:
        """One shard of the sample; drawn rows are put together once on each worker."""
        if self.rows is None:
            return ShardView(replica, self.data, shard)
        gathered = replica.cache.of(_Gathered)
        if gathered.sample != self or gathered.replica is None:
            shards = [_gather(replica.shards[self.data], places) for places in self.rows]
            # What is kept of the data's own shards is not of these; how much fits in memory is alike.
            cache = WorkerCache(microbatches=replica.cache.microbatches)
            gathered.replica = replace(replica, shards={DataSet.TRACE_SAMPLE: shards}, cache=cache)
            gathered.sample = self
        return ShardView(gathered.replica, DataSet.TRACE_SAMPLE, shard)


@dataclass
class _Gathered:
    """The last drawn sample on a worker; see `WorkerCache.of`."""

    sample: TraceSample | None = None
    replica: Replica | None = None


def draw_sample(pool: Pool, data: DataSet, num_shards: int, num_draws: int, seed: int) -> TraceSample:
    """Draw samples with replacement with chance q_i = (1 − a)·u_i/Σu + a/N, a = `UNIFORM_SHARE`.

    A drawn sample weighs 1/(N·q_i), which makes the weighted mean over the drawn ones unbiased for the mean
    over all N; the closer to proportional to u, the smaller its error. The draws depend on the seed alone.

    Work: one forward of the data. Bytes: 8 a sample back.

    Args:
        pool: the fleet.
        data: the replica's data set.
        num_shards: its shards.
        num_draws: samples to draw; one may come up more than once.
        seed: the run's seed.

    Raises:
        DataError: the model's output is not finite on a shard.
    """
    units: dict[Key, tuple[object, ...]] = {("curvature", shard): (shard,) for shard in range(num_shards)}
    answers = dict(pool.run(output_curvature, units, (data,)))
    shards = [answers["curvature", shard] for shard in range(num_shards)]
    places = [(shard, row) for shard, value in enumerate(shards) for row in range(len(value["curvature"]))]
    chances = _chances(np.concatenate([value["curvature"] for value in shards]))
    rng = np.random.default_rng(derive_seed(seed, "trace-sample"))
    picks = np.sort(rng.choice(len(chances), num_draws, p=chances / chances.sum()))
    groups = _cut_into_shards(picks, places, shards)
    rows = tuple(tuple(places[pick] for pick in group) for group in groups)
    weights = tuple(tuple((1 / (len(chances) * chances[group])).tolist()) for group in groups)
    return TraceSample(data, rows, weights)


def _chances(curvatures: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Q of every sample; uniform where no sample has curvature."""
    count = len(curvatures)
    total = curvatures.sum()
    proportional = curvatures / total if total > 0 else np.full(count, 1 / count)
    return (1 - UNIFORM_SHARE) * proportional + UNIFORM_SHARE / count


def _cut_into_shards(
    picks: npt.NDArray[np.int64], places: Sequence[Place], shards: Sequence[UnitValue]
) -> list[npt.NDArray[np.int64]]:
    """The picks in groups, each of which can be one batch and is no larger than the data's shards."""
    forms = {value["form"].tobytes() for value in shards}
    if len(forms) == 1 and b"" not in forms:
        size = max(len(value["curvature"]) for value in shards)
        return [picks[start : start + size] for start in range(0, len(picks), size)]
    # Texts padded shard by shard cannot be put into one batch with those of another shard.
    by_shard = groupby(picks.tolist(), key=lambda pick: places[pick][0])
    return [np.array(list(group)) for _, group in by_shard]


def output_curvature(replica: Replica, data: DataSet, shard: int) -> UnitValue:
    """Unit: Tr Λ of every sample of a shard, and the form of its batch.

    Args:
        replica: holds the float model and the shards.
        data: the data set.
        shard: index of the shard in it.

    Raises:
        DataError: the output on a sample is not finite; names the sample.
    """
    name = shard_name(data, shard)
    outputs = replica.run(replica.model, replica.shard(data, shard), name)
    finite = torch.isfinite(flat_rows(outputs).reshape(batch_size(outputs), -1)).all(1)
    if not finite.all():
        raise DataError(
            f"the model's output on sample {int((~finite).nonzero()[0])} of {name} is not finite; mend or "
            f"drop the sample."
        )
    # Rounding may leave a certain sample just below 0.
    curvature = objective_factor(outputs, replica.divergence).trace().clamp(min=0)
    form = joinable_form(replica.shards[data][shard]).encode()
    return {"curvature": curvature.cpu().numpy(), "form": np.frombuffer(form, np.uint8)}


def _gather(shards: Sequence[Batch], places: Sequence[Place]) -> Batch:
    """One batch of the samples at these places, which come shard by shard."""
    parts = []
    for shard, group in groupby(places, key=lambda place: place[0]):
        parts.append(pick(shards[shard], [row for _, row in group]))
    return parts[0] if len(parts) == 1 else join(parts)
