"""The calibration stage: ranges for every point at every width it may take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raysearch.calibration.distribution import EXACT_BITS, SIGNIFICANT_BITS
from raysearch.calibration.grid import levels_of
from raysearch.calibration.observer import Collected, ObservationPlan, Observer, merge_collected
from raysearch.calibration.ranges import Observed, Rule, find_range, warn_of_clipping, warn_of_zeros
from raysearch.calibration.rules import choose_rules
from raysearch.calibration.statistics import Statistics
from raysearch.calibration.weights import (
    min_max_scale,
    mse_affine,
    mse_minimum,
    mse_scale,
    observe_rows,
)
from raysearch.cluster.pool import Key, LocalPool, Pool, UnitValue
from raysearch.config.calibration import CalibrationConfig
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
from raysearch.quantizer import storable_range
from raysearch.records import QuantizationPoint, QuantizerRange, QuantizerSetup, RangeTable, Scheme


def calibrate(
    setup: QuantizerSetup,
    pool: Pool,
    num_shards: int,
    settings: CalibrationConfig = CalibrationConfig(),  # noqa: B008 (frozen)
) -> RangeTable:
    """Initialise the ranges of all quantizers.

    Each point gets an estimator (`statistics.interval` has the definitions, `clipping` those of "mse" and
    "entropy", which clip anew for every width) and a grid by its spec (`ranges.find_range`). Weights are
    one sample. 0 is exactly on every grid.

    Work: one unit a weight, one forward a calibration shard; values are merged in key order, and what is
    merged is extremes per sample and integer counts, so shards give the bits of the single pass. Bytes per
    unit: 16 per sample, channel and activation; where an estimator reads the values themselves, also 20 per
    distinct value rounded to 12 significant bits, about 0.4 MB an activation; 8 per scale and width of a
    weight. All scales of a weight, of channels or of groups, are found together.

    Args:
        setup: the points.
        pool: its replicas hold the float model and the shards named "calibration".
        num_shards: how many shards there are.
        settings: which estimator each point gets.

    Raises:
        DataError: an activation or a weight is not finite, no forward reads the activation, or its range
            has zero width though the activation is not 0 throughout; names the quantizer.
        PlacementError: an override fits nothing; names the nearest quantizers.
    """
    rules = choose_rules(setup, settings)
    activations = setup.of_kind("activation")
    shard_units: dict[Key, tuple[object, ...]] = {("shard", index): (index,) for index in range(num_shards)}
    observed: dict[Key, UnitValue] = {}
    if activations:
        plans = {name: activation_plan(point, rules[name]) for name, point in activations.items()}
        observed = dict(pool.run(observe_shard, shard_units, (setup, plans)))
    weight_units: dict[Key, tuple[object, ...]] = {("weight", p): (p,) for p in setup.of_kind("weight")}
    of_weights = dict(pool.run(weight_ranges, weight_units, (setup, rules)))
    ranges: dict[tuple[str, Scheme], QuantizerRange] = {}
    for point in setup.points.values():
        schemes = setup.group_of(point.id).schemes
        if point.kind == "weight":
            for scheme in schemes:
                ranges[point.id, scheme] = _unpack(point, of_weights["weight", point.id], scheme)
            continue
        parts = [_part(observed[key], point.id) for key in shard_units]
        batches = [Statistics.from_units([part]) for part in parts]
        observations = Observed.check(point, batches, Statistics.from_units(parts))
        warn_of_clipping(point, observations)
        warn_of_zeros(point, observations)
        for scheme in schemes:
            ranges[point.id, scheme] = find_range(point, observations, rules[point.id], scheme.num_bits)
    return RangeTable(ranges)


def calibrate_model(
    model: nn.Module,
    setup: QuantizerSetup,
    data: Any,
    settings: CalibrationConfig = CalibrationConfig(),  # noqa: B008 (frozen)
    *,
    forward: Forward = default_forward,
) -> RangeTable:
    """`calibrate` in this process on a model that is left exactly as found, also by an exception.

    Args:
        model: the float model.
        setup: its points.
        data: a data set, or an iterable of batches.
        settings: samples, shards and estimators.
        forward: (model, batch) → outputs.

    Raises:
        DataError: see `calibrate`, and no or broken data.
        PlacementError: see `calibrate`, and a setup of another model.
    """
    shards = materialise(data, settings.num_samples, settings.shard_size, DataSet.CALIBRATION)
    first = next(model.parameters(), None)
    device = "cpu" if first is None else str(first.device)
    with frozen_eval(model):
        replica = Replica(model, forward, {DataSet.CALIBRATION: shards}, Divergence("mse"), device=device)
        return calibrate(setup, LocalPool(replica, deterministic=False), len(shards), settings)


def activation_plan(point: QuantizationPoint, rule: Rule) -> ObservationPlan:
    """What an activation's observer keeps; the point's axis does not count the batch."""
    axis = point.granularity.normalized(point.shape).behind_batch().axis
    return rule.observation_plan(axis, EXACT_BITS, SIGNIFICANT_BITS)


def observe_shard(
    replica: Replica, setup: QuantizerSetup, plans: Mapping[str, ObservationPlan], index: int
) -> UnitValue:
    """Unit: what the observers of all activation points collect on one shard, as "id|array".

    A shard that does not fit in memory is run in pieces, each with observers of its own; samples and counts
    are the same.

    Args:
        replica: holds the float model and the calibration shards.
        setup: the points; only activations are observed.
        plans: activation id → what its observer keeps.
        index: the shard.
    """

    def collect(part: Batch) -> dict[str, Collected]:
        observers = {name: Observer(plans[name]) for name in setup.of_kind("activation")}
        handles = attach_activation(replica.model, setup, observers)
        try:
            replica.forward(replica.model, part)
        finally:
            detach_all(replica.model, setup, handles)
        return {name: observer.collect() for name, observer in observers.items()}

    # Not `replica.run`, which judges the output: here the output does not matter.
    with frozen_eval(replica.model), torch.no_grad():
        collected = run_in_microbatches(
            collect,
            replica.shard(DataSet.CALIBRATION, index),
            replica.microbatches("observe"),
            combine=_merged,
            name=shard_name(DataSet.CALIBRATION, index),
        )
    return {f"{name}|{key}": array for name, arrays in collected.items() for key, array in arrays.items()}


def _merged(parts: Sequence[dict[str, Collected]]) -> dict[str, Collected]:
    return {name: merge_collected([part[name] for part in parts]) for name in parts[0]}


def weight_ranges(
    replica: Replica, setup: QuantizerSetup, rules: Mapping[str, Rule], point_id: str
) -> UnitValue:
    """Unit: the ranges of one weight at each of its schemes, as "scheme|field".

    Args:
        replica: holds the float model.
        setup: the points, and the schemes of their groups.
        rules: quantizer id → how its range is found.
        point_id: the weight.
    """
    point = setup.points[point_id]
    rule = rules[point_id]
    site = point.sites[0]
    weight = replica.weight(f"{site.module}.{site.name}" if site.module else site.name)
    # What schemes make of the point: those with the same scales and mode share what is observed.
    observations: dict[QuantizationPoint, Observed] = {}
    fields: dict[str, npt.NDArray[np.generic]] = {}
    with torch.no_grad():
        for scheme in setup.group_of(point_id).schemes:
            part = point.at(scheme)
            if part not in observations:
                observations[part] = _observe_weight(part, weight, rule)
                warn_of_clipping(part, observations[part])
            observed = _weight_range(part, weight, observations[part], rule, scheme.num_bits)
            value = storable_range(observed, part)
            fields[f"{scheme}|scale"] = value.scale
            fields[f"{scheme}|zero_point"] = value.zero_point
            fields[f"{scheme}|signed"] = np.array([value.signed])
            if value.minimum is not None:
                fields[f"{scheme}|minimum"] = value.minimum
    return fields


def _observe_weight(point: QuantizationPoint, weight: Tensor, rule: Rule) -> Observed:
    # A weight is one sample, and each of its scales a channel.
    plan = rule.observation_plan(1, EXACT_BITS, EXACT_BITS)
    if rule.estimator == "mse" and not _needs_counts(point, weight):
        # The vectorised form for weights (`mse_scale`) needs no counts.
        plan = ObservationPlan(1)
    statistics = observe_rows(weight, point.granularity, plan)
    return Observed.check(point, [statistics], statistics)


def _needs_counts(point: QuantizationPoint, weight: Tensor) -> bool:
    spec = point.grid_spec
    return spec.mode == "symmetric" and spec.signed is False and bool((weight < 0).any())


def _weight_range(
    point: QuantizationPoint, weight: Tensor, observations: Observed, rule: Rule, bits: int
) -> QuantizerRange:
    spec = point.grid_spec
    if spec.mode == "minimum":
        return _range_with_minima(point, weight, observations, rule, bits)
    if rule.is_reference or rule.estimator not in ("mse", "min_max") or _needs_counts(point, weight):
        return find_range(point, observations, rule, bits)
    if spec.mode == "asymmetric":
        if rule.estimator == "min_max":
            return find_range(point, observations, rule, bits)
        levels = levels_of(point, bits, signed=False)
        return mse_affine(weight, point.granularity, levels, point.scale_format)
    signed = bool((weight < 0).any()) if spec.signed is None else spec.signed
    find = mse_scale if rule.estimator == "mse" else min_max_scale
    levels = levels_of(point, bits, signed=signed)
    scale = find(weight, point.granularity, bits, levels, point.scale_format)
    return QuantizerRange(scale, np.zeros(scale.shape, np.int32), signed)


def _range_with_minima(
    point: QuantizationPoint, weight: Tensor, observations: Observed, rule: Rule, bits: int
) -> QuantizerRange:
    """Scales and minima; of estimators other than "mse" those of the asymmetric grid that they lead to."""
    if rule.estimator == "mse":
        levels = levels_of(point, bits, signed=False)
        return mse_minimum(weight, point.granularity, levels, point.scale_format)
    asymmetric = replace(point, spec=replace(point.grid_spec, mode="asymmetric"))
    value = find_range(asymmetric, observations, rule, bits)
    minimum = value.scale * value.zero_point.astype(np.float32)
    return replace(value, zero_point=np.zeros_like(value.zero_point), minimum=minimum)


def _unpack(point: QuantizationPoint, value: UnitValue, scheme: Scheme) -> QuantizerRange:
    scale = np.asarray(value[f"{scheme}|scale"], np.float32)
    if not np.isfinite(scale).all():
        raise DataError(f"the weight '{point.id}' has a scale that is not finite at {scheme.in_words}.")
    zero_point = np.asarray(value[f"{scheme}|zero_point"], np.int32)
    minimum = value.get(f"{scheme}|minimum")
    if minimum is not None:
        minimum = np.asarray(minimum, np.float32)
    return QuantizerRange(scale, zero_point, bool(value[f"{scheme}|signed"][0]), minimum=minimum)


def _part(value: UnitValue, point_id: str) -> dict[str, npt.NDArray[np.generic]]:
    keys = ("rows", "values", "counts", "channels")
    return {key: value[f"{point_id}|{key}"] for key in keys if f"{point_id}|{key}" in value}
