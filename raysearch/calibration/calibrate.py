"""The calibration stage: ranges for every point at every width it may take."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from raysearch.calibration.observer import MinMaxObserver
from raysearch.calibration.weights import min_max_scale, mse_scale
from raysearch.cluster.pool import Key, Pool, UnitValue
from raysearch.controller import attach_activation, detach_all
from raysearch.errors import DataError
from raysearch.evaluation import Replica
from raysearch.quantizer import quant_levels
from raysearch.quantizer.quantizer import SMALLEST_SCALE
from raysearch.records import QuantizerRange, QuantizerSetup, RangeTable

WeightEstimator = Literal["mse", "min_max"]
ActivationEstimator = Literal["mean_min_max", "min_max"]


def calibrate(
    setup: QuantizerSetup,
    pool: Pool,
    num_shards: int,
    *,
    weights: WeightEstimator = "mse",
    activations: ActivationEstimator = "min_max",
) -> RangeTable:
    """Initialise the ranges of all quantizers.

    Weights, per channel and width: "mse" minimises ‖Q(W) − W‖², "min_max" takes the largest magnitude.
    Activations, per tensor: "min_max" takes the extremes over all samples, "mean_min_max" the mean over
    *samples* of each sample's extremes, so the result does not depend on the batch size. The range always
    contains 0, and 0 is exactly on the grid: s = (max − min)/(2^b − 1), z = rne(−min/s), which moves the
    range by half a step at most.

    Work: one unit a weight, one forward a calibration shard; values are merged in key order. Bytes per
    unit: 16 per sample and activation, 8 per channel and width of a weight.

    Args:
        setup: the points.
        pool: its replicas hold the float model and the shards named "calibration".
        num_shards: how many shards there are.
        weights: estimator for weights.
        activations: estimator for activations.

    Raises:
        DataError: an activation or a weight is not finite, or no forward reads the activation; names the
            quantizer.
    """
    units: dict[Key, tuple[object, ...]] = {("shard", index): (index,) for index in range(num_shards)}
    observed: dict[Key, UnitValue] = {}
    if setup.of_kind("activation"):
        observed = dict(pool.run(observe_shard, units, (setup,)))
    weight_units: dict[Key, tuple[object, ...]] = {("weight", p): (p,) for p in setup.of_kind("weight")}
    scales = dict(pool.run(weight_scales, weight_units, (setup, weights)))
    ranges: dict[tuple[str, int], QuantizerRange] = {}
    for point in setup.points.values():
        widths = setup.group_of(point.id).bit_widths
        if point.kind == "weight":
            for bits in widths:
                scale = np.asarray(scales["weight", point.id][str(bits)], dtype=np.float32)
                if not np.isfinite(scale).all():
                    raise DataError(f"the weight '{point.id}' holds NaN or infinity; load intact weights.")
                ranges[point.id, bits] = QuantizerRange(scale, np.zeros(scale.shape, np.int32), True)
        else:
            rows = np.concatenate([observed[key][point.id] for key in units])
            low, high = _bounds(rows, point.id, activations)
            for bits in widths:
                ranges[point.id, bits] = activation_range(low, high, bits)
    return RangeTable(ranges)


def activation_range(low: float, high: float, num_bits: int) -> QuantizerRange:
    """Affine range of [low, high] widened to 0, with 0 exactly on the grid."""
    _, top = quant_levels(num_bits, signed=False)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / top, SMALLEST_SCALE)
    zero = int(np.clip(np.rint(-low / scale), 0, top))
    return QuantizerRange(np.array([scale], np.float32), np.array([zero], np.int32), False)


def observe_shard(replica: Replica, setup: QuantizerSetup, index: int) -> UnitValue:
    """Unit: extremes of every activation point per sample of one shard."""
    points = setup.of_kind("activation")
    observers = {name: MinMaxObserver() for name in points}
    handles = attach_activation(replica.model, setup, observers)
    try:
        replica.run(replica.model, replica.shard("calibration", index))
        return {name: observer.collect().cpu().numpy() for name, observer in observers.items()}
    finally:
        detach_all(replica.model, setup, handles)


def weight_scales(
    replica: Replica, setup: QuantizerSetup, estimator: WeightEstimator, point_id: str
) -> UnitValue:
    """Unit: scales of one weight at each of its widths, keyed by the width."""
    point = setup.points[point_id]
    weight = replica.model.get_parameter(point_id)
    find = mse_scale if estimator == "mse" else min_max_scale
    with torch.no_grad():
        return {str(b): find(weight, point.axis, b) for b in setup.group_of(point_id).bit_widths}


def _bounds(
    rows: npt.NDArray[np.float64], point_id: str, estimator: ActivationEstimator
) -> tuple[float, float]:
    if not len(rows):
        raise DataError(
            f"no forward of the calibration data reads the activation '{point_id}'; leave it float "
            f"(placement.ignored_scopes), or give a Task(forward=...) that runs the whole model."
        )
    if not np.isfinite(rows).all():
        raise DataError(
            f"the activation '{point_id}' takes NaN or infinity on the calibration data; leave it float "
            f"(placement.ignored_scopes) or mend the data."
        )
    if estimator == "min_max":
        return float(rows[:, 0].min()), float(rows[:, 1].max())
    return float(rows[:, 0].mean()), float(rows[:, 1].mean())
