"""Samples for traces drawn by importance: few backward passes stand for many samples.

The per-sample trace varies by more than its mean from sample to sample, and a few samples hold most of it.
One forward shows which: u_i = Tr Λ_i, the trace of the divergence's Hessian in the outputs, 1 − ‖p_i‖² for
class probabilities p_i. Samples are drawn in proportion to it and weighted back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch

from raysearch.cluster.pool import Key, Pool, UnitValue
from raysearch.errors import DataError
from raysearch.evaluation import DataSet, Replica, WorkerCache
from raysearch.evaluation.batches import Batch, join, joinable_form, pick
from raysearch.seeding import derive_seed
from raysearch.sensitivity.estimators.output_factor import divergence_factor

UNIFORM_SHARE = 0.1
"""Chance that a sample is drawn regardless of its curvature; no weight exceeds its inverse."""


@dataclass(frozen=True)
class TraceSample:
    """The samples that traces are measured on.

    Attributes:
        data: the replica's data set.
        rows: per shard of the sample its (shard, row) in the data; None: the data's own shards, whole.
        weights: per shard of the sample the weight of each row in the mean over all samples of the data;
            empty where all weigh 1.
    """

    data: DataSet = DataSet.CALIBRATION
    rows: tuple[tuple[tuple[int, int], ...], ...] | None = None
    weights: tuple[tuple[float, ...], ...] = ()

    def weigh(self, shard: int, draws: np.ndarray) -> np.ndarray:
        """Draws [P, K] of a shard, so that their mean over all shards estimates that of the data."""
        return draws * np.array(self.weights[shard]) if self.weights else draws

    def view(self, replica: Replica) -> Replica:
        """A replica whose calibration shards are those of the sample, made once on each worker."""
        if self.data == DataSet.CALIBRATION and self.rows is None:
            return replica
        slot = replica.cache.of(_Gathered)
        if slot.sample != self:
            shards = replica.shards[self.data]
            cut = shards if self.rows is None else [_gather(shards, rows) for rows in self.rows]
            # How much fits in memory is known of the worker, not of the sample.
            cache = WorkerCache(microbatches=replica.cache.microbatches)
            slot.sample, slot.replica = self, replace(replica, shards={DataSet.CALIBRATION: cut}, cache=cache)
        assert slot.replica is not None
        return slot.replica


@dataclass
class _Gathered:
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
    got = dict(pool.run(output_curvature, units, (data,)))
    values = [got["curvature", shard] for shard in range(num_shards)]
    places = [(shard, row) for shard, value in enumerate(values) for row in range(len(value["curvature"]))]
    scores = np.concatenate([value["curvature"] for value in values])
    count, total = len(scores), scores.sum()
    chance = scores / total if total > 0 else np.full(count, 1 / count)
    chance = (1 - UNIFORM_SHARE) * chance + UNIFORM_SHARE / count
    rng = np.random.default_rng(derive_seed(seed, "trace-sample"))
    picks = np.sort(rng.choice(count, num_draws, p=chance / chance.sum()))
    forms = {value["form"].tobytes() for value in values}
    size = max(len(value["curvature"]) for value in values)
    if len(forms) == 1 and b"" not in forms:
        groups = [picks[start : start + size] for start in range(0, num_draws, size)]
    else:
        # Texts padded shard by shard cannot be put into one batch.
        groups = [np.array(list(g)) for _, g in groupby(picks.tolist(), key=lambda pick: places[pick][0])]
    return TraceSample(
        data,
        tuple(tuple(places[pick] for pick in group) for group in groups),
        tuple(tuple((1 / (count * chance[group])).tolist()) for group in groups),
    )


def output_curvature(replica: Replica, data: DataSet, shard: int) -> UnitValue:
    """Unit: Tr Λ of every sample of a shard, and the form of its batch."""
    outputs = replica.run(replica.model, replica.shard(data, shard))
    finite = torch.isfinite(outputs.reshape(len(outputs), -1)).all(1)
    if not finite.all():
        raise DataError(
            f"the model's output on sample {int((~finite).nonzero()[0])} of shard {shard} of the {data} data "
            f"is not finite; mend or drop the sample."
        )
    found = divergence_factor(outputs, replica.divergence).trace().clamp(min=0)
    form = joinable_form(replica.shards[data][shard]).encode()
    return {"curvature": found.cpu().numpy(), "form": np.frombuffer(form, np.uint8)}


def _gather(shards: list[Batch], places: tuple[tuple[int, int], ...]) -> Batch:
    parts = [
        pick(shards[shard], [row for _, row in group]) for shard, group in groupby(places, key=lambda p: p[0])
    ]
    return parts[0] if len(parts) == 1 else join(parts)
