"""Intervals chosen for one grid: least squared error, and least relative entropy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raysearch.calibration.distribution import Distribution
from raysearch.calibration.grid import affine_grid, symmetric_scale

FloatArray = npt.NDArray[np.float64]

NUM_CLIPS = 40
"""Clips tried in the first round, evenly spaced up to the end of the data; half when both ends move."""

NUM_ROUNDS = 2
"""Rounds around the best clip, each on a raster eight times finer."""

NUM_BINS = 2048
"""Bins of the histogram that the entropy is taken of."""

BIN_STRIDE = 8
"""Clips tried for the entropy are this many bins apart."""


class SquaredError:
    """Σ (Q(x) − x)² of a distribution on any uniform grid, in O(levels · log values).

    With cumulative sums of n, n·x and n·x² the values nearest to a level v cost Σx² − 2vΣx + v²Σ1. The
    sums are float64, so the answer is right to about 1e-16 of Σx².
    """

    def __init__(self, distribution: Distribution) -> None:
        counts, values = distribution.counts.astype(np.float64), distribution.values
        self._values = values
        self._sums = np.concatenate(
            [np.zeros((3, 1)), np.cumsum([counts, counts * values, counts * values**2], axis=1)], axis=1
        )

    def __call__(self, scale: float, zero: int, levels: tuple[int, int]) -> float:
        """The error on the grid (q − zero)·scale for q in levels."""
        grid = (np.arange(levels[0], levels[1] + 1) - zero) * scale
        cuts = np.searchsorted(self._values, (grid[:-1] + grid[1:]) / 2)
        bounds = np.concatenate([[0], cuts, [len(self._values)]])
        count, total, square = np.diff(self._sums[:, bounds], axis=1)
        return float((square - 2 * grid * total + grid**2 * count).sum())


def mse_interval(
    distribution: Distribution, low: float, high: float, levels: tuple[int, int]
) -> tuple[float, float]:
    """The interval within [low, high] whose affine grid has the least Σ (Q(x) − x)².

    Tried are evenly spaced clips of each end that is not 0, every pair of them, then finer around the best;
    each is judged on the very grid it would get, with 0 on it. [low, high] itself is among them, so the
    error is never above that of min-max (up to the rounding of the counted values).

    Cost: about 1,000 evaluations when both ends move, 75 when one does; 2^b·log₂(values) each.

    Args:
        distribution: the values, with their counts.
        low: least value; counts as 0 where it is above.
        high: greatest value; counts as 0 where it is below.
        levels: (lowest code, highest code).
    """
    low, high = min(low, 0.0), max(high, 0.0)
    error = SquaredError(distribution)
    errors: dict[tuple[float, float], float] = {}

    def judge(a: float, b: float) -> float:
        if (a, b) not in errors:
            errors[a, b] = error(*affine_grid(low * a, high * b, levels), levels)
        return errors[a, b]

    has_low, has_high = low < 0, high > 0
    best = (1.0, 1.0)
    count = NUM_CLIPS // 2 if has_low and has_high else NUM_CLIPS
    step = 1 / count
    raster = np.arange(count, 0, -1) / count
    lows, highs = (raster if has_low else [1.0]), (raster if has_high else [1.0])
    for _ in range(NUM_ROUNDS + 1):
        pairs = [(float(a), float(b)) for a in lows for b in highs]
        # Ties go to the wider interval, which comes first.
        best = min([best, *pairs], key=lambda pair: judge(*pair))
        step /= 8
        near = np.arange(8, -9, -1) * step
        lows = np.clip(best[0] + near, step, 1.0) if has_low else [1.0]
        highs = np.clip(best[1] + near, step, 1.0) if has_high else [1.0]
    return low * best[0], high * best[1]


def mse_peak(distribution: Distribution, top: float, levels: tuple[int, int]) -> float:
    """The magnitude up to 1.1·`top` whose symmetric grid has the least Σ (Q(x) − x)².

    Above `top`, because a signed grid reaches one level further down than up.

    Args:
        distribution: the values, with their counts.
        top: greatest magnitude that counts, where the clips start from.
        levels: (lowest code, highest code).
    """
    error = SquaredError(distribution)
    best, step = 1.0, 1 / NUM_CLIPS
    tried = np.concatenate([[1.0], np.arange(1.1, step / 2, -step)])
    for _ in range(NUM_ROUNDS + 1):
        clips = [best, *(float(clip) for clip in tried)]
        best = min(clips, key=lambda clip: error(symmetric_scale(top * clip, levels), 0, levels))
        step /= 8
        tried = np.clip(best + np.arange(8, -9, -1) * step, step, 1.1)
    return top * best


def entropy_peak(distribution: Distribution, num_levels: int) -> float:
    """The threshold T on |x| that loses least information on `num_levels` levels of 0 … T.

    |x| without exact zeros (they are on every grid) is counted in NUM_BINS bins of 0 … max |x|. For each T,
    BIN_STRIDE bins apart, P is the histogram up to T with everything above added to its last bin, and Q the
    histogram up to T averaged over the occupied bins of each of `num_levels` equal parts; T minimises
    KL(P‖Q) = Σ P·ln(P/Q). Ties go to the larger T.

    Error: T is a multiple of 8/2048 of max |x|.

    Source: Migacz, 8-bit inference with TensorRT, GTC 2017.
    """
    sizes = distribution.magnitudes()
    sizes = sizes.where(sizes.values > 0)
    if not len(sizes.values):
        return 0.0
    top = float(sizes.values[-1])
    places = np.minimum((sizes.values / top * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    bins = np.bincount(places, sizes.counts.astype(np.float64), NUM_BINS).astype(np.float64)
    least = -(-num_levels // BIN_STRIDE) * BIN_STRIDE
    stops = range(NUM_BINS, least - 1, -BIN_STRIDE)
    best = min(stops, key=lambda stop: _relative_entropy(bins, stop, num_levels))
    return top * best / NUM_BINS


def _relative_entropy(bins: FloatArray, stop: int, num_levels: int) -> float:
    inner = bins[:stop]
    clipped = inner.copy()
    clipped[-1] += bins[stop:].sum()
    part = np.arange(stop) * num_levels // stop
    occupied = np.bincount(part, inner > 0, num_levels)
    mean = np.bincount(part, inner, num_levels) / np.maximum(occupied, 1)
    spread = np.where(inner > 0, mean[part], 0.0)
    if not inner.any() or (clipped[-1] > 0 and spread[-1] == 0):
        return float("inf")
    p, q = clipped / clipped.sum(), spread / spread.sum()
    occurs = p > 0
    return float((p[occurs] * np.log(p[occurs] / q[occurs])).sum())
