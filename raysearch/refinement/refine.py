"""The refinement stage: candidates for the winner's weights, the best on validation data kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from raysearch.cluster.pool import Key, Pool
from raysearch.config.rounding import RoundingConfig
from raysearch.errors import DataError
from raysearch.evaluation import DataSet
from raysearch.records.refinement import Candidate, Refinement
from raysearch.records.winner import Winner
from raysearch.refinement.judging import judge
from raysearch.refinement.tuning import Work, candidate_from, tune
from raysearch.seeding import derive_seed

FloatArray = npt.NDArray[np.float64]


def refine(
    winner: Winner,
    candidates: Sequence[Candidate],
    pool: Pool,
    num_shards: Mapping[DataSet, int],
    settings: RoundingConfig,
    seed: int = 0,
) -> Refinement:
    """Judge the candidates on validation data, tune the best of them, and keep what measures best.

    Candidates are compared by their mean divergence from the float model; of a tie the earlier one is kept.
    So the plain codes of the rounding table, which come first, give way only to what is better.

    Work: a unit for each candidate and shard of the search's validation data, one forward of each model; and
    one unit of `rounding.refine_steps` steps, see `tune`. Keys and sizes do not depend on the number of
    workers.

    Args:
        winner: what is refined.
        candidates: the plain one first.
        pool: its replicas hold the float model, and the shards of calibration and search.
        num_shards: how many shards each of these has.
        settings: whether and how it is tuned.
        seed: the run's seed.

    Raises:
        DataError: no candidate gives finite outputs on the validation data, or tuning does not.
    """
    num_calibration = num_shards[DataSet.CALIBRATION]
    order_seed = derive_seed(seed, "refinement", "order")
    work = Work(winner, settings, num_calibration, order_seed)
    tried = list(candidates)
    values = _judge(pool, work, tried, num_shards[DataSet.SEARCH])
    if "tune" in settings.refine:
        start = _best(tried, values)
        units: dict[Key, tuple[object, ...]] = {("tune", start.name): (start,)}
        answers = dict(pool.run(tune, units, (work,)))
        tuned = candidate_from(answers["tune", start.name])
        tried.append(tuned)
        values |= _judge(pool, work, [tuned], num_shards[DataSet.SEARCH])
    plain = values[tried[0].name]
    return Refinement(
        best=_best(tried, values),
        divergences={candidate.name: float(values[candidate.name].mean()) for candidate in tried},
        errors={candidate.name: _standard_error(values[candidate.name] - plain) for candidate in tried},
        num_samples=len(plain),
    )


def _judge(pool: Pool, work: Work, candidates: Sequence[Candidate], num_shards: int) -> dict[str, FloatArray]:
    """Candidate → divergence of every validation sample."""
    units: dict[Key, tuple[object, ...]] = {}
    for candidate in candidates:
        for index in range(num_shards):
            units["judge", candidate.name, index] = (candidate, index)
    answers = dict(pool.run(judge, units, (work,)))
    values = {}
    for candidate in candidates:
        shards = [answers["judge", candidate.name, index]["values"] for index in range(num_shards)]
        values[candidate.name] = np.concatenate(shards)
    return values


def _best(tried: Sequence[Candidate], values: Mapping[str, FloatArray]) -> Candidate:
    """Of least mean divergence; the earlier one of a tie, and none that is not finite."""
    means = {candidate.name: float(values[candidate.name].mean()) for candidate in tried}
    finite = [candidate for candidate in tried if math.isfinite(means[candidate.name])]
    if not finite:
        raise DataError(
            "the chosen model gives NaN or infinity on the validation data, refined or not: look for a layer "
            "whose range overflows (`raysearch inspect`), or leave it float (placement.ignored_scopes)."
        )
    return min(finite, key=lambda candidate: means[candidate.name])


def _standard_error(differences: FloatArray) -> float:
    if len(differences) < 2:
        return math.nan
    return float(differences.std(ddof=1) / math.sqrt(len(differences)))
