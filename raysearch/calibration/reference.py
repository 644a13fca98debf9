"""The reference's range initialisation (NNCF's), to the letter: for whoever must get its very ranges.

It differs from `statistics.py` and is worse in known ways: means over batches depend on the batch size,
`mixed_min_max` is lopsided for signed symmetric activations, `threesigma` can leave the data and flip the
sign, scales are floored at 0.1, and every bit-width gets the same interval.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from raysearch.calibration.distribution import Distribution
from raysearch.calibration.statistics import Statistics, three_sigma
from raysearch.config.calibration import Estimator
from raysearch.quantizer import asymmetric_from_min_max, symmetric_from_min_max, tune_range
from raysearch.records import QuantizerRange

FloatArray = npt.NDArray[np.float64]


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
        ends = np.array([[_percentiles(d, percentiles) for d in batch.distributions] for batch in batches])
        return ends[..., 0].mean(0), ends[..., 1].mean(0)
    merged = [Distribution.merge(parts) for parts in zip(*(b.distributions for b in batches), strict=True)]
    if estimator == "threesigma":
        ends = np.array([three_sigma(distribution) for distribution in merged])
    else:
        ends = np.array([_percentiles(distribution, percentiles) for distribution in merged])
    return ends[:, 0], ends[:, 1]


def reference_scale(low: FloatArray, high: FloatArray, signed: bool | None = None) -> tuple[FloatArray, bool]:
    """(scale per channel, signed) of a symmetric quantizer: `symmetric_from_min_max`, in float64.

    The scale is the value of the highest code, not a step; a forced sign wins even against the data.

    Args:
        low: least value of every channel, [channels].
        high: greatest value of every channel, [channels].
        signed: the forced sign; None: as the data needs it.
    """
    scale, sign = symmetric_from_min_max(torch.from_numpy(low), torch.from_numpy(high), signed=signed)
    return scale.numpy(), sign


def reference_affine(low: FloatArray, high: FloatArray, levels: tuple[int, int]) -> QuantizerRange:
    """The range whose grid is that of the reference's asymmetric quantizer, tuned so that 0 is on it.

    Args:
        low: lower ends, [channels].
        high: upper ends, [channels].
        levels: (lowest code, highest code).
    """
    bottom, top = levels
    start, width = asymmetric_from_min_max(torch.from_numpy(low), torch.from_numpy(high))
    tuned, span = tune_range(start, width, top - bottom + 1)
    scale = span / (top - bottom)
    zero_point = (bottom + torch.round(-tuned / scale)).clamp(bottom, top)
    return QuantizerRange(scale.float().numpy(), zero_point.to(torch.int32).numpy(), False)


def _percentiles(distribution: Distribution, percentiles: tuple[float, float]) -> tuple[float, float]:
    return distribution.percentile(percentiles[0]), distribution.percentile(percentiles[1])
