"""The range of one quantizer at one width, from what was observed of its tensor."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raysearch.calibration.clipping import entropy_peak, mse_interval, mse_peak
from raysearch.calibration.grid import (
    affine_range,
    levels_of,
    symmetric_range,
)
from raysearch.calibration.observer import ObservationPlan
from raysearch.calibration.reference import reference_affine, reference_interval, reference_scale
from raysearch.calibration.statistics import Statistics, interval, peak
from raysearch.config.calibration import Estimator
from raysearch.errors import DataError
from raysearch.records import PER_TENSOR, QuantizationPoint, QuantizerRange

FloatArray = npt.NDArray[np.float64]

REFERENCE_ESTIMATORS = frozenset(
    {"min_max", "mean_min_max", "mixed_min_max", "threesigma", "percentile", "mean_percentile"}
)
"""Estimators that the reference has too."""


ZERO_PEAK = 1.0
"""Top of the range of a tensor that is 0 throughout."""


@dataclass(frozen=True)
class Rule:
    """How one quantizer's range is found.

    Attributes:
        estimator: the definition.
        percentiles: lower and upper percentile, for the two that use them.
        reference: the reference's definitions instead of ours, for its six estimators.
    """

    estimator: Estimator
    percentiles: tuple[float, float] = (0.1, 99.9)
    reference: bool = False

    @property
    def is_reference(self) -> bool:
        """Whether the reference's definition is what counts."""
        return self.reference and self.estimator in REFERENCE_ESTIMATORS

    def observation_plan(self, axis: int | None, exact_bits: int, rounded_bits: int) -> ObservationPlan:
        """What must be observed for it.

        Args:
            axis: dimension of the channels in the observed tensor.
            exact_bits: significant bits where values must be kept one by one.
            rounded_bits: significant bits otherwise.
        """
        counted = self.estimator in ("threesigma", "percentile", "mse", "entropy")
        if self.is_reference:
            exact = counted or self.estimator == "mean_percentile"
            return ObservationPlan(axis, exact_bits if exact else 0)
        own = self.percentiles if self.estimator == "mean_percentile" else None
        return ObservationPlan(axis, rounded_bits if counted else 0, own)


@dataclass(frozen=True)
class Observed:
    """Everything seen of one quantizer's tensor, checked.

    Attributes:
        batches: what was seen of each shard.
        merged: that of all shards together.
    """

    batches: tuple[Statistics, ...]
    merged: Statistics

    @property
    def is_zero(self) -> bool:
        """Whether every value was 0."""
        return not self.merged.low.any() and not self.merged.high.any()

    @classmethod
    def check(cls, point: QuantizationPoint, batches: Sequence[Statistics], merged: Statistics) -> Observed:
        """What was seen of a point's tensor.

        Args:
            point: the quantizer.
            batches: what was seen of each shard; shards that hold nothing are left out.
            merged: that of all shards together.

        Raises:
            DataError: nothing was, it is not finite, or it has another number of channels than the point;
                names the quantizer.
        """
        if not len(merged.rows):
            raise DataError(
                f"no forward of the calibration data reads the activation '{point.id}'; leave it float "
                f"(placement.ignored_scopes), or give a Task(forward=...) that runs the whole model."
            )
        if not np.isfinite(merged.rows).all():
            if point.kind == "weight":
                raise DataError(f"the weight '{point.id}' holds NaN or infinity; load intact weights.")
            raise DataError(
                f"the activation '{point.id}' takes NaN or infinity on the calibration data; leave it float "
                f"(placement.ignored_scopes) or mend the data."
            )
        if merged.rows.shape[1] != point.num_scales:
            raise DataError(
                f"the {point.kind} '{point.id}' has {merged.rows.shape[1]} channels where its quantizer "
                f"holds {point.num_scales} scales; place the quantizers anew."
            )
        return cls(tuple(batch for batch in batches if len(batch.rows)), merged)


def find_range(point: QuantizationPoint, observed: Observed, rule: Rule, num_bits: int) -> QuantizerRange:
    """The range of a point at a width, on the levels of its own quantizer.

    Symmetric: signed when the data has negative values in any channel (one flag a quantizer), unless the
    spec says so itself; then the highest code lies on the interval's magnitude. Asymmetric: the interval is
    widened to 0, and 0 is exactly on the grid. A channel of an activation that was always 0 takes the
    interval of the widest one, since nothing is known of it; where all values were 0, it is 0 … 1.

    Args:
        point: the quantizer.
        observed: what was seen of its tensor.
        rule: estimator and percentiles.
        num_bits: the width.

    Raises:
        DataError: the interval has zero width, though the data are not 0 throughout; names the quantizer.
    """
    spec = point.grid_spec
    if spec.mode == "asymmetric":
        levels = levels_of(point, num_bits, signed=False)
        low, high = _interval(point, observed, rule, levels)
        low, high = _filled(point, observed, rule, np.minimum(low, 0.0), np.maximum(high, 0.0))
        return (reference_affine if rule.is_reference else affine_range)(low, high, levels)
    signed = bool((observed.merged.low < 0).any()) if spec.signed is None else spec.signed
    if not rule.is_reference:
        levels = levels_of(point, num_bits, signed=signed)
        magnitude = _peak(point, observed, rule, levels, signed)
        _, magnitude = _filled(point, observed, rule, np.zeros_like(magnitude), magnitude)
        return symmetric_range(magnitude, levels, signed=signed)
    low, high = _reference(point, observed, rule, symmetric=True)
    magnitude, signed = reference_scale(low, high, spec.signed)
    return symmetric_range(magnitude, levels_of(point, num_bits, signed=signed), signed=signed)


def warn_of_zeros(point: QuantizationPoint, observed: Observed) -> None:
    """Say so when an activation is 0 on all of the calibration data: its scale is a guess."""
    if observed.is_zero:
        warnings.warn(
            f"the activation '{point.id}' is exactly 0 on the calibration data: its zeros stay exact, and "
            f"its scale is that of 0 … {ZERO_PEAK:g}. If other data give it other values, calibrate on such, "
            f"or leave it float (placement.ignored_scopes).",
            stacklevel=2,
        )


def warn_of_clipping(point: QuantizationPoint, observed: Observed) -> None:
    """Say so when an unsigned symmetric quantizer was asked for and the data has negative values."""
    spec = point.grid_spec
    if spec.mode == "symmetric" and spec.signed is False and (observed.merged.low < 0).any():
        warnings.warn(
            f"the quantizer '{point.id}' is unsigned, but its tensor goes down to "
            f"{float(observed.merged.low.min()):.4g}: negative values become 0. Leave `signed` out to "
            f"take the sign from the data.",
            stacklevel=2,
        )


def _interval(
    point: QuantizationPoint, observed: Observed, rule: Rule, levels: tuple[int, int]
) -> tuple[FloatArray, FloatArray]:
    merged = observed.merged
    if rule.is_reference:
        return _reference(point, observed, rule, symmetric=False)
    if rule.estimator == "mse":
        ends = [
            mse_interval(distribution, float(a), float(b), levels)
            for distribution, a, b in zip(merged.distributions, merged.low, merged.high, strict=True)
        ]
        return np.array([a for a, _ in ends]), np.array([b for _, b in ends])
    if rule.estimator == "entropy":
        low, high = np.minimum(merged.low, 0.0), np.maximum(merged.high, 0.0)
        # The levels of 0 … max |x|: all of them when the data has one sign, half when it is balanced.
        share = np.maximum(-low, high) / np.maximum(high - low, np.finfo(np.float64).tiny)
        sizes = np.maximum(np.rint((levels[1] - levels[0] + 1) * share), 2).astype(int)
        pairs = zip(merged.distributions, sizes, strict=True)
        clip = np.array([entropy_peak(distribution, int(size)) for distribution, size in pairs])
        return np.maximum(low, -clip), np.minimum(high, clip)
    return interval(merged, rule.estimator, rule.percentiles, per_channel=point.granularity != PER_TENSOR)


def _peak(
    point: QuantizationPoint, observed: Observed, rule: Rule, levels: tuple[int, int], signed: bool
) -> FloatArray:
    merged = observed.merged
    if rule.estimator not in ("mse", "entropy"):
        per_channel = point.granularity != PER_TENSOR
        return peak(merged, rule.estimator, rule.percentiles, per_channel=per_channel, signed=signed)
    tops = np.maximum(np.abs(merged.low), np.abs(merged.high)) if signed else np.maximum(merged.high, 0.0)
    if rule.estimator == "mse":
        pairs = zip(merged.distributions, tops, strict=True)
        return np.array([mse_peak(distribution, float(top), levels) for distribution, top in pairs])
    judged = [d if signed else d.where(d.values >= 0) for d in merged.distributions]
    return np.array([entropy_peak(distribution, levels[1] + 1) for distribution in judged])


def _reference(
    point: QuantizationPoint, observed: Observed, rule: Rule, *, symmetric: bool
) -> tuple[FloatArray, FloatArray]:
    use_means = point.kind == "activation" and point.granularity == PER_TENSOR
    return reference_interval(
        observed.batches, rule.estimator, rule.percentiles, symmetric=symmetric, use_means=use_means
    )


def _filled(
    point: QuantizationPoint, observed: Observed, rule: Rule, low: FloatArray, high: FloatArray
) -> tuple[FloatArray, FloatArray]:
    # Weights stay as they are: a pruned channel is 0 for good, and any scale says so exactly.
    empty = low >= high
    if point.kind == "weight" or not empty.any():
        return low, high
    if empty.all() and observed.is_zero:
        # 0 is exactly on every grid; of other values nothing is known.
        return low, np.full_like(high, ZERO_PEAK)
    if empty.all():
        raise DataError(
            f"the range of the activation '{point.id}' has zero width: by '{rule.estimator}' it is 0 on the "
            f"calibration data. Leave it float (placement.ignored_scopes), give data that reaches it, or "
            f"set calibration.overrides['{point.id}'] to 'min_max'."
        )
    return np.where(empty, low.min(), low), np.where(empty, high.max(), high)
