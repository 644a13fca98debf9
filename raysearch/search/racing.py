"""Racing: every candidate on few samples first, the rest of the samples for those that may still win.

A candidate c is compared with the best assignment so far, i, whose values are known on all N samples. With
d = c − i per sample, "c is no worse" says that the mean of d is at most 0. The samples are in random order,
so under it the t-th difference has a conditional mean of at most m_t = −Σ_{s<t} d_s / (N − t + 1); and since
no value is below 0, it is at least −M_t, M_t the greatest i among the samples not seen yet. Hence

    W_t = mean over f of Π_{s≤t} (1 + f·(d_s − m_s)/(M_s + m_s)),   0 < f < 1,

starts at 1 and is expected never to grow: by Ville's inequality it ever reaches 1/ε with probability at most
ε. The candidate is stopped when it does (Waudby-Smith and Ramdas 2020, sampling without replacement). The
rate holds for any distribution of the values and any number of looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from raysearch.errors import ConfigError, RunError
from raysearch.records import BitAssignment
from raysearch.search.evaluator import Measured
from raysearch.search.problem.space import FloatArray

ShardValues = tuple[FloatArray, FloatArray]
"""Values [n] of one shard, and how many samples each stands for [n]: each sample alone, or the shard."""

MeasureShards = Callable[
    [Mapping[int, BitAssignment], Sequence[int]], Mapping[int, Mapping[int, ShardValues]]
]
"""Measures assignments on some shards: trial number → shard → values. Samples are in random order."""

FRACTIONS = tuple(2.0**-k for k in range(1, 9))
"""f of the bets; their mean is nearly as good as the best of them, which is not known beforehand."""


class Race:
    """Measures batches in rounds of 1, 2, 4, … shards in all, and stops what cannot win.

    Decided on whole rounds, so the result does not depend on when or in which order values arrive.

    Args:
        measure: measures assignments on some shards.
        num_shards: shards in all.
        error: ε, the probability with which a candidate that is no worse than the best one is stopped; 0
            stops none.
        maximize: whether more is better. Then a value counts as 1 − value, and nothing is stopped unless all
            values lie in 0 … 1.

    Raises:
        ConfigError: ε is not in [0, 1), or there is no shard.
    """

    def __init__(
        self, measure: MeasureShards, num_shards: int, error: float = 0.05, maximize: bool = False
    ) -> None:
        if not 0 <= error < 1:
            raise ConfigError(f"the race's error rate is {error}; it must be at least 0 and below 1.")
        if num_shards < 1:
            raise ConfigError("a race needs at least one shard to measure on.")
        self._measure = measure
        self._num_shards = num_shards
        self._error = error
        self._maximize = maximize
        self._complete: dict[str, list[ShardValues]] = {}

    def memoized(self) -> Race:
        """A race of the same settings that measures no assignment twice on one shard."""
        return Race(MemoizedMeasure(self._measure), self._num_shards, self._error, self._maximize)

    def __call__(
        self,
        assignments: Mapping[int, BitAssignment],
        protected: Collection[int] = (),
        best: BitAssignment | None = None,
    ) -> dict[int, Measured]:
        """Measure a batch; see `Evaluator`.

        Raises:
            RunError: a value is missing.
        """
        can_stop = self._error > 0 and len(set(assignments) - set(protected)) > 0
        reference = self._values_of(best) if can_stop and best is not None else None
        running = dict(assignments)
        shards_of: dict[int, list[ShardValues]] = {number: [] for number in assignments}
        rounds: dict[int, dict[int, float]] = {number: {} for number in assignments}
        results: dict[int, Measured] = {}
        first = 0
        for last in self._rounds(is_race=reference is not None):
            batch = self._measure(running, range(first, last))
            for number in sorted(running):
                values = shards_of[number]
                values += [_checked(batch, number, shard) for shard in range(first, last)]
                mean, count = _mean(values)
                rounds[number][count] = mean
                if not math.isfinite(mean):
                    results[number] = Measured(math.nan, count)
                elif last == self._num_shards:
                    results[number] = Measured(mean, count, rounds[number])
                    self._complete[assignments[number].digest()] = values
                elif reference is not None and number not in protected and self._loses(values, reference):
                    # On all samples it would be the best one's mean, and as much more as it is on these.
                    estimate = _mean(reference)[0] + mean - _mean(reference[:last])[0]
                    results[number] = Measured(estimate, count, rounds[number], stopped=True)
            running = {number: a for number, a in running.items() if number not in results}
            first = last
            if not running:
                break
        return results

    def _rounds(self, is_race: bool) -> list[int]:
        """Shards in all after each round."""
        if not is_race:
            return [self._num_shards]
        powers = [2**k for k in range(64) if 2**k < self._num_shards]
        return [*powers, self._num_shards]

    def _values_of(self, best: BitAssignment) -> list[ShardValues]:
        """The best one's values on all shards; measured anew where another process had measured them."""
        digest = best.digest()
        if digest not in self._complete:
            shards = range(self._num_shards)
            batch = self._measure({-1: best}, shards)
            self._complete[digest] = [_checked(batch, -1, shard) for shard in shards]
        return self._complete[digest]

    def _loses(self, values: list[ShardValues], reference: list[ShardValues]) -> bool:
        """Whether the candidate is worse than the reference, with the race's error rate."""
        candidate = _flat(values)
        best = _flat(reference)
        if self._maximize:
            candidate = 1 - candidate
            best = 1 - best
            if max(candidate.max(), best.max()) > 1:
                return False
        if min(candidate.min(), best.min()) < 0:
            return False
        sizes = np.concatenate([size for _, size in reference])
        weight = sizes / sizes.mean()
        return log_wealth(candidate * weight[: len(candidate)], best * weight) >= -math.log(self._error)


class MemoizedMeasure:
    """Measures what was not measured before; the same assignment comes round in every study."""

    def __init__(self, measure: MeasureShards) -> None:
        self._measure = measure
        self._values: dict[tuple[str, int], ShardValues] = {}

    def __call__(
        self, assignments: Mapping[int, BitAssignment], shards: Sequence[int]
    ) -> dict[int, dict[int, ShardValues]]:
        """See `MeasureShards`."""
        digests = {number: assignment.digest() for number, assignment in assignments.items()}
        # Assignments that lack the same shards are measured together, each once.
        missing: dict[tuple[int, ...], dict[str, int]] = {}
        for number, digest in digests.items():
            open_shards = tuple(shard for shard in shards if (digest, shard) not in self._values)
            if open_shards:
                missing.setdefault(open_shards, {}).setdefault(digest, number)
        for open_shards, number_of in missing.items():
            batch = self._measure({n: assignments[n] for n in number_of.values()}, open_shards)
            for digest, number in number_of.items():
                for shard in open_shards:
                    self._values[digest, shard] = batch[number][shard]
        return {
            number: {shard: self._values[digest, shard] for shard in shards}
            for number, digest in digests.items()
        }


def log_wealth(candidate: FloatArray, best: FloatArray) -> float:
    """Log of the greatest W_t over the seen samples: evidence that the candidate's mean is the greater one.

    Args:
        candidate: values [n] ≥ 0 of the candidate on the first n samples.
        best: values [N] ≥ 0 of the best one on all samples, in the same random order.

    Returns:
        ∞ when the remaining samples cannot make up for what was seen.
    """
    n, total = len(candidate), len(best)
    difference = candidate - best[:n]
    before = np.concatenate([[0.0], np.cumsum(difference)[:-1]])
    allowed = -before / (total - np.arange(n))
    # The greatest value among the samples from t on, which bounds how much better the candidate can be.
    most = np.maximum.accumulate(best[::-1])[::-1][:n]
    room = most + allowed
    if (room <= 1e-12 * max(float(best.max()), 1e-300)).any():
        # Either all is decided (the rest would have to be below 0), or all values are 0 and nothing differs.
        return math.inf if float(difference.sum()) > 0 else -math.inf
    gains = (difference - allowed) / room
    logs = [np.cumsum(np.log1p(np.maximum(f * gains, -f))) for f in FRACTIONS]
    stacked = np.stack(logs)
    top = stacked.max(axis=0)
    wealth = top + np.log(np.exp(stacked - top).mean(axis=0))
    return float(wealth.max())


def _checked(batch: Mapping[int, Mapping[int, ShardValues]], number: int, shard: int) -> ShardValues:
    if number not in batch or shard not in batch[number]:
        raise RunError(f"the evaluator gave no value for the trial {number} on shard {shard}.")
    return batch[number][shard]


def _flat(shards: Sequence[ShardValues]) -> FloatArray:
    return np.concatenate([values for values, _ in shards])


def _mean(shards: Sequence[ShardValues]) -> tuple[float, int]:
    total = sum(float(values @ sizes) for values, sizes in shards)
    count = sum(float(sizes.sum()) for _, sizes in shards)
    return total / count, int(count)
