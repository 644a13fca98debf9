"""The calibration stage: ranges for every point at every width it may take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raysearch.calibration.distribution import EXACT_BITS, SIGNIFICANT_BITS
from raysearch.calibration.grid import levels_of
from raysearch.calibration.observer import Collected, Observer, Wanted, merge_collected
from raysearch.calibration.ranges import Observed, Rule, find_range, warn_of_clipping
from raysearch.calibration.rules import choose_rules
from raysearch.calibration.statistics import Statistics
from raysearch.calibration.weights import min_max_scale, mse_affine, mse_scale
from raysearch.cluster.pool import Key, LocalPool, Pool, UnitValue
from raysearch.config.calibration import Estimator
from raysearch.errors import DataError
from raysearch.evaluation import (
    Batch,
    DataSet,
    Divergence,
    Forward,
    Replica,
    default_forward,
    materialise,
    run_in_microbatches,
    shard_name,
)
from raysearch.evaluation.forward import frozen_eval
from raysearch.hooks import attach_activation, detach_all
from raysearch.records import QuantizationPoint, QuantizerRange, QuantizerSetup, RangeTable


def calibrate(
    setup: QuantizerSetup,
    pool: Pool,
    num_shards: int,
    *,
    weights: Estimator = "mse",
    activations: Estimator = "mse",
    overrides: Mapping[str, Estimator] | None = None,
    percentiles: tuple[float, float] = (0.1, 99.9),
    reference: bool = False,
) -> RangeTable:
    """Initialise the ranges of all quantizers.

    Each point gets an estimator (`statistics.interval` has the definitions, `clipping` those of "mse" and
    "entropy", which clip anew for every width) and a grid by its spec (`ranges.find_range`). Weights are
    one sample. 0 is exactly on every grid.

    Work: one unit a weight, one forward a calibration shard; values are merged in key order, and what is
    merged is extremes per sample and integer counts, so shards give the bits of the single pass. Bytes per
    unit: 16 per sample, channel and activation; where an estimator reads the values themselves, also 20 per
    distinct value rounded to 12 significant bits, about 0.4 MB an activation; 8 per channel and width of a
    weight.

    Args:
        setup: the points.
        pool: its replicas hold the float model and the shards named "calibration".
        num_shards: how many shards there are.
        weights: estimator for weights.
        activations: estimator for activations.
        overrides: name, glob or "re:…" → the estimator of what it fits; later ones win.
        percentiles: lower and upper percentile, for "percentile" and "mean_percentile".
        reference: the definitions of the NNCF reference (`reference.py`) for its six estimators; a shard is
            a batch. Values are then kept one by one where its definitions need them.

    Raises:
        DataError: an activation or a weight is not finite, no forward reads the activation, or its range
            has zero width; names the quantizer.
        PlacementError: an override fits nothing; names the nearest quantizers.
    """
    rules = choose_rules(setup, weights, activations, overrides or {}, percentiles, reference)
    units: dict[Key, tuple[object, ...]] = {("shard", index): (index,) for index in range(num_shards)}
    observed: dict[Key, UnitValue] = {}
    if setup.of_kind("activation"):
        wanted = {name: activation_wants(point, rules[name]) for name, point in _activations(setup)}
        observed = dict(pool.run(observe_shard, units, (setup, wanted)))
    weight_units: dict[Key, tuple[object, ...]] = {("weight", p): (p,) for p in setup.of_kind("weight")}
    found = dict(pool.run(weight_ranges, weight_units, (setup, rules)))
    ranges: dict[tuple[str, int], QuantizerRange] = {}
    for point in setup.points.values():
        widths = setup.group_of(point.id).bit_widths
        if point.kind == "weight":
            for bits in widths:
                ranges[point.id, bits] = _unpack(point, found["weight", point.id], bits)
            continue
        parts = [Statistics.from_units([_part(observed[key], point.id)]) for key in units]
        whole = Statistics.from_units([_part(observed[key], point.id) for key in units])
        seen = Observed.check(point, parts, whole)
        warn_of_clipping(point, seen)
        for bits in widths:
            ranges[point.id, bits] = find_range(point, seen, rules[point.id], bits)
    return RangeTable(ranges)


def calibrate_model(
    model: nn.Module,
    setup: QuantizerSetup,
    data: Any,
    *,
    num_samples: int = 256,
    shard_size: int = 32,
    forward: Forward = default_forward,
    **options: Any,
) -> RangeTable:
    """`calibrate` in this process on a model that is left exactly as found, also by an exception.

    Args:
        model: the float model.
        setup: its points.
        data: a data set, or an iterable of batches.
        num_samples: exactly so many are read, or all if there are fewer; 0 means all.
        shard_size: samples in one forward.
        forward: (model, batch) → outputs.
        **options: estimators and so on, see `calibrate`.

    Raises:
        DataError: see `calibrate`, and no or broken data.
        PlacementError: see `calibrate`, and a setup of another model.
    """
    shards = materialise(data, num_samples, shard_size, "calibration")
    first = next(model.parameters(), None)
    device = "cpu" if first is None else str(first.device)
    with frozen_eval(model):
        replica = Replica(model, forward, {DataSet.CALIBRATION: shards}, Divergence("mse"), device=device)
        return calibrate(setup, LocalPool(replica, deterministic=False), len(shards), **options)


def activation_wants(point: QuantizationPoint, rule: Rule) -> Wanted:
    """What an activation's observer keeps; the point's axis does not count the batch."""
    axis = point.granularity.normalized(point.shape).behind_batch().axis
    return rule.wanted(axis, EXACT_BITS, SIGNIFICANT_BITS)


def observe_shard(
    replica: Replica, setup: QuantizerSetup, wanted: Mapping[str, Wanted], index: int
) -> UnitValue:
    """Unit: what the observers of all activation points collect on one shard, as "id|array".

    A shard that does not fit in memory is run in pieces, each with observers of its own; samples and counts
    are the same.
    """

    def collect(part: Batch) -> dict[str, Collected]:
        observers = {name: Observer(wanted[name]) for name in setup.of_kind("activation")}
        handles = attach_activation(replica.model, setup, observers)
        try:
            replica.forward(replica.model, part)
        finally:
            detach_all(replica.model, setup, handles)
        return {name: observer.collect() for name, observer in observers.items()}

    # Not `replica.run`, which judges the output: here the output does not matter.
    with frozen_eval(replica.model), torch.no_grad():
        found = run_in_microbatches(
            collect,
            replica.shard(DataSet.CALIBRATION, index),
            replica.microbatches("observe"),
            combine=_merged,
            name=shard_name(DataSet.CALIBRATION, index),
        )
    return {f"{name}|{key}": array for name, got in found.items() for key, array in got.items()}


def _merged(parts: Sequence[dict[str, Collected]]) -> dict[str, Collected]:
    return {name: merge_collected([part[name] for part in parts]) for name in parts[0]}


def weight_ranges(
    replica: Replica, setup: QuantizerSetup, rules: Mapping[str, Rule], point_id: str
) -> UnitValue:
    """Unit: the ranges of one weight at each of its widths, as "width|field"."""
    point, rule = setup.points[point_id], rules[point_id]
    site = point.sites[0]
    weight = replica.model.get_parameter(f"{site.module}.{site.name}" if site.module else site.name)
    with torch.no_grad():
        seen = _look_at(point, weight, rule)
        warn_of_clipping(point, seen)
        found: dict[str, npt.NDArray[np.generic]] = {}
        for bits in setup.group_of(point_id).bit_widths:
            value = _weight_range(point, weight, seen, rule, bits)
            found[f"{bits}|scale"], found[f"{bits}|zero_point"] = value.scale, value.zero_point
            found[f"{bits}|signed"] = np.array([value.signed])
    return found


def _look_at(point: QuantizationPoint, weight: Tensor, rule: Rule) -> Observed:
    # mse and min-max of weights have vectorised forms that need no counts.
    axis = point.granularity.normalized(point.shape).behind_batch().axis
    wanted = rule.wanted(axis, EXACT_BITS, EXACT_BITS)
    fast = rule.estimator == "mse" and not _needs_counts(point, weight)
    observer = Observer(Wanted(wanted.axis) if fast else wanted)
    observer(weight.detach()[None])
    whole = Statistics.from_units([observer.collect()])
    return Observed.check(point, [whole], whole)


def _needs_counts(point: QuantizationPoint, weight: Tensor) -> bool:
    spec = point.grid_spec
    return spec.mode == "symmetric" and spec.signed is False and bool((weight < 0).any())


def _weight_range(
    point: QuantizationPoint, weight: Tensor, seen: Observed, rule: Rule, bits: int
) -> QuantizerRange:
    spec = point.grid_spec
    if rule.is_reference or rule.estimator not in ("mse", "min_max") or _needs_counts(point, weight):
        return find_range(point, seen, rule, bits)
    if spec.mode == "asymmetric":
        if rule.estimator == "min_max":
            return find_range(point, seen, rule, bits)
        return mse_affine(weight, point.granularity.axis, levels_of(point, bits, signed=False))
    signed = bool((weight < 0).any()) if spec.signed is None else spec.signed
    find = mse_scale if rule.estimator == "mse" else min_max_scale
    scale = find(weight, point.granularity.axis, bits, levels_of(point, bits, signed=signed))
    return QuantizerRange(scale, np.zeros(scale.shape, np.int32), signed)


def _unpack(point: QuantizationPoint, value: UnitValue, bits: int) -> QuantizerRange:
    scale = np.asarray(value[f"{bits}|scale"], np.float32)
    if not np.isfinite(scale).all():
        raise DataError(f"the weight '{point.id}' has a scale that is not finite at {bits} bits.")
    zero_point = np.asarray(value[f"{bits}|zero_point"], np.int32)
    return QuantizerRange(scale, zero_point, bool(value[f"{bits}|signed"][0]))


def _part(value: UnitValue, point_id: str) -> dict[str, npt.NDArray[np.generic]]:
    keys = ("rows", "values", "counts", "channels")
    return {key: value[f"{point_id}|{key}"] for key in keys if f"{point_id}|{key}" in value}


def _activations(setup: QuantizerSetup) -> list[tuple[str, QuantizationPoint]]:
    return list(setup.of_kind("activation").items())
