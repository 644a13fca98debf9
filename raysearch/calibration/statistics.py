"""What was observed of one quantizer's tensor, and the estimators that turn it into an interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from raysearch.calibration.distribution import Distribution
from raysearch.config.calibration import Estimator

FloatArray = npt.NDArray[np.float64]

SIGMAS = 3 * 1.482623
"""Three standard deviations of a normal in units of its median absolute deviation, as in the reference."""

SMALLEST_VALUE = 2.0**-23
"""Smaller magnitudes count as zeros where `threesigma` takes the middle of the values."""


@dataclass(frozen=True)
class Statistics:
    """What one pass over the samples leaves of a tensor.

    Attributes:
        rows: [samples, channels, 2 or 4]: min, max, lower and upper percentile of a sample.
        distributions: one a channel; empty when values were not counted.
    """

    rows: FloatArray
    distributions: tuple[Distribution, ...] = ()

    @classmethod
    def from_units(cls, parts: Sequence[Mapping[str, npt.NDArray[np.generic]]]) -> Statistics:
        """Merge what the observers of several shards collected, in the order given."""
        filled = [part for part in parts if len(part["rows"])]
        if not filled:
            return cls(np.empty((0, 1, 2)))
        rows = np.concatenate([np.asarray(part["rows"], np.float64) for part in filled])
        if "values" not in filled[0]:
            return cls(rows)
        split = [_distributions(part, rows.shape[1]) for part in filled]
        return cls(rows, tuple(Distribution.merge(parts) for parts in zip(*split, strict=True)))

    @property
    def low(self) -> FloatArray:
        """The least value of every channel."""
        return np.asarray(self.rows[..., 0].min(0), np.float64)

    @property
    def high(self) -> FloatArray:
        """The greatest value of every channel."""
        return np.asarray(self.rows[..., 1].max(0), np.float64)


def _distributions(part: Mapping[str, npt.NDArray[np.generic]], channels: int) -> list[Distribution]:
    values, counts = np.asarray(part["values"], np.float64), np.asarray(part["counts"], np.int64)
    starts = np.searchsorted(np.asarray(part["channels"]), np.arange(channels + 1))
    ends = pairwise(starts)
    return [Distribution(values[a:b], counts[a:b]) for a, b in ends]


def interval(
    statistics: Statistics, estimator: Estimator, percentiles: tuple[float, float], *, per_channel: bool
) -> tuple[FloatArray, FloatArray]:
    """The (low, high) of every channel by one of the six statistical estimators.

    With x_i the values of sample i and x all values:

        min_max          min x                          max x
        mean_min_max     mean_i min x_i                 mean_i max x_i
        mixed_min_max    mean_min_max per tensor, min_max per channel
        threesigma       M − 3σ, M + 3σ, within [min x, max x]; σ = 1.482623·median |x − M|, M the median of
                         the values that are not 0
        percentile       P_lower(x)                     P_upper(x), interpolated linearly
        mean_percentile  mean_i P_lower(x_i)            mean_i P_upper(x_i)

    Means are over samples, each with the same weight, so the batch size has no part in them. Both ends
    follow the same rule in every mode. No end lies outside the data, so a tensor without negative values
    keeps its sign. (`reference.py` has the reference's definitions, which differ in all of this.)

    Error: medians and percentiles read values rounded to 12 significant bits, so each order statistic is off
    by at most 2⁻¹² of itself; the other statistics are exact.

    Args:
        statistics: of all samples; `threesigma` and `percentile` need counted values.
        estimator: one of the six.
        percentiles: lower and upper percentile, 0 to 100; only `percentile` reads them here, the rows of
            `mean_percentile` hold them already.
        per_channel: whether there is more than one scale, which decides what `mixed_min_max` means.
    """
    rows = statistics.rows
    if estimator == "mixed_min_max":
        estimator = "min_max" if per_channel else "mean_min_max"
    if estimator == "min_max":
        return statistics.low, statistics.high
    if estimator == "mean_min_max":
        return rows[..., 0].mean(0), rows[..., 1].mean(0)
    if estimator == "mean_percentile":
        return rows[..., 2].mean(0), rows[..., 3].mean(0)
    if estimator == "threesigma":
        low, high = _each(statistics, three_sigma)
    else:
        low, high = _each(statistics, lambda d: (d.percentile(percentiles[0]), d.percentile(percentiles[1])))
    return np.clip(low, statistics.low, statistics.high), np.clip(high, statistics.low, statistics.high)


def peak(
    statistics: Statistics,
    estimator: Estimator,
    percentiles: tuple[float, float],
    *,
    per_channel: bool,
    signed: bool,
) -> FloatArray:
    """The magnitude that a symmetric quantizer covers, per channel.

    Signed: the mean estimators average max |x_i|, so that both signs follow one rule; the others take
    max(|low|, |high|). Unsigned: high, where negative values count as 0.

    Args:
        statistics: of all samples; `threesigma` and `percentile` need counted values.
        estimator: one of the six.
        percentiles: lower and upper percentile, 0 to 100.
        per_channel: whether there is more than one scale, which decides what `mixed_min_max` means.
        signed: whether the quantizer has codes below 0.
    """
    if not signed:
        floor = Statistics(np.maximum(statistics.rows, 0.0), statistics.distributions)
        return np.maximum(interval(floor, estimator, percentiles, per_channel=per_channel)[1], 0.0)
    mixed_mean = estimator == "mixed_min_max" and not per_channel
    if estimator in ("mean_min_max", "mean_percentile") or mixed_mean:
        ends = statistics.rows[..., 2:] if estimator == "mean_percentile" else statistics.rows[..., :2]
        return np.asarray(np.abs(ends).max(2).mean(0), np.float64)
    low, high = interval(statistics, estimator, percentiles, per_channel=per_channel)
    return np.maximum(np.abs(low), np.abs(high))


def three_sigma(distribution: Distribution) -> tuple[float, float]:
    """M − 3σ and M + 3σ; 0 and 0 when there is nothing but zeros."""
    inner = distribution.where(np.abs(distribution.values) >= SMALLEST_VALUE)
    if not len(inner.values):
        return 0.0, 0.0
    middle = inner.median()
    shifted = Distribution(distribution.values - middle, distribution.counts)
    spread = SIGMAS * shifted.magnitudes().median()
    return middle - spread, middle + spread


def _each(
    statistics: Statistics, function: Callable[[Distribution], tuple[float, float]]
) -> tuple[FloatArray, FloatArray]:
    ends = np.array([function(distribution) for distribution in statistics.distributions])
    return ends[:, 0], ends[:, 1]
