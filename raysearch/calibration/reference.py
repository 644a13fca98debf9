"""The reference's range initialisation (NNCF's), to the letter: for whoever must get its very ranges.

It differs from `statistics.py` and is worse in known ways: means over batches depend on the batch size,
`mixed_min_max` is lopsided for signed symmetric activations, `threesigma` can leave the data and flip the
sign, scales are floored at 0.1, and every bit-width gets the same interval.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from raysearch.calibration.distribution import Distribution
from raysearch.calibration.statistics import Estimator, Statistics, three_sigma
from raysearch.records import QuantizerRange

FloatArray = npt.NDArray[np.float64]

SMALLEST_PEAK = 0.1
"""Smaller scales of symmetric quantizers become this."""

SMALLEST_SHARE = 0.01
"""An asymmetric channel's range is at least this share of the widest channel's."""


def reference_interval(
    batches: Sequence[Statistics],
    estimator: Estimator,
    percentiles: tuple[float, float],
    *,
    symmetric: bool,
    use_means: bool,
) -> tuple[FloatArray, FloatArray]:
    """The lower and upper statistic of every channel.

    With B a batch and x all values; "max" takes |x| when symmetric, "min" never does:

        min_max          min x                              max x
        mixed_min_max    means over samples where `use_means`, but min x when symmetric; else min_max
        mean_min_max     mean over batches of min B         mean over batches of max B
        threesigma       M − 3σ, M + 3σ; σ = 1.482623·median |x − M| over all values, M the median of those
                         that are not 0
        percentile       over all values, kept one by one
        mean_percentile  mean over batches of the percentiles of B

    Args:
        batches: what was seen of each batch; the last four need values counted exactly.
        estimator: one of the six.
        percentiles: lower and upper percentile.
        symmetric: mode of the quantizer.
        use_means: whether it is an activation per tensor.
    """
    rows = np.concatenate([batch.rows for batch in batches])
    lows, highs = rows[..., 0], rows[..., 1]
    if symmetric:
        highs = np.maximum(np.abs(lows), np.abs(highs))
    if estimator == "mixed_min_max" and use_means:
        return (lows.min(0) if symmetric else lows.mean(0)), highs.mean(0)
    if estimator in ("min_max", "mixed_min_max"):
        return lows.min(0), highs.max(0)
    if estimator == "mean_min_max":
        tops = [np.maximum(np.abs(b.low), np.abs(b.high)) if symmetric else b.high for b in batches]
        return np.mean([batch.low for batch in batches], 0), np.mean(tops, 0)
    if estimator == "mean_percentile":
        found = np.array([[_percentiles(d, percentiles) for d in batch.distributions] for batch in batches])
        return found[..., 0].mean(0), found[..., 1].mean(0)
    whole = [Distribution.merge(parts) for parts in zip(*(b.distributions for b in batches), strict=True)]
    if estimator == "threesigma":
        found = np.array([three_sigma(distribution) for distribution in whole])
    else:
        found = np.array([_percentiles(distribution, percentiles) for distribution in whole])
    return found[:, 0], found[:, 1]


def reference_scale(low: FloatArray, high: FloatArray, signed: bool | None = None) -> tuple[FloatArray, bool]:
    """(scale per channel, signed) of a symmetric quantizer; a forced sign wins even against the data.

    scale = max(|low|, |high|), at least 0.1; signed when any channel's low is negative. The scale is the
    value of the highest code, not a step.
    """
    if signed is None:
        signed = bool((low < 0).any())
    return np.maximum(np.maximum(np.abs(low), np.abs(high)), SMALLEST_PEAK), signed


def reference_span(low: FloatArray, high: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(low, range) of an asymmetric quantizer per channel.

    r = high − low, R its maximum over channels, c = (clamp(r, 0.01·R, R) − r)/2: (low − c, r + 2c).
    """
    width = high - low
    widest = width.max()
    more = (np.clip(width, SMALLEST_SHARE * widest, widest) - width) / 2
    return low - more, width + 2 * more


def tune_range(low: float, width: float, num_levels: int) -> tuple[float, float]:
    """(low, range) moved so that 0 lies on the grid, by stretching the end that costs less.

    n = levels − 1, lo' = min(low, 0), hi' = max(low + range, 0), z = rne(−lo'·n/(hi' − lo')). Either hi'
    stays and lo = z/(z − n)·hi', or lo' stays and hi = (z − n)/z·lo'; the wider result wins. When z is 0 or
    n the end in question stays as it is: the outputs then do not quite reach it.
    """
    steps = num_levels - 1
    bottom, top = min(low, 0.0), max(low + width, 0.0)
    zero = float(np.rint(-bottom * steps / (top - bottom)))
    moved_low = zero / (zero - steps) * top if zero < steps else bottom
    moved_high = (zero - steps) / zero * bottom if zero > 0 else top
    if top - moved_low > moved_high - bottom:
        return moved_low, top - moved_low
    return bottom, moved_high - bottom


def reference_affine(low: FloatArray, high: FloatArray, levels: tuple[int, int]) -> QuantizerRange:
    """The range whose grid is that of the reference's asymmetric quantizer after `tune_range`."""
    scales, zeros = [], []
    for start, width in zip(*reference_span(low, high), strict=True):
        tuned, span = tune_range(float(start), float(width), levels[1] - levels[0] + 1)
        scales.append(span / (levels[1] - levels[0]))
        zeros.append(levels[0] + int(np.rint(-tuned / scales[-1])))
    zero_points = np.clip(np.array(zeros), *levels).astype(np.int32)
    return QuantizerRange(np.array(scales, np.float32), zero_points, False)


def _percentiles(found: Distribution, percentiles: tuple[float, float]) -> tuple[float, float]:
    return found.percentile(percentiles[0]), found.percentile(percentiles[1])
