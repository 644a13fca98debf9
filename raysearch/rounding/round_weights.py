"""The rounding stage: the codes and scales that will be deployed, of every weight at every scheme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from raysearch.cluster.pool import Key, Pool, UnitValue
from raysearch.config.rounding import RoundingConfig
from raysearch.evaluation import Replica
from raysearch.quantizer import point_levels, storable_range
from raysearch.records import QuantizationPoint, QuantizerSetup, RangeTable
from raysearch.records.rounding import RoundedWeight, RoundingTable
from raysearch.records.scheme import Scheme
from raysearch.rounding.gptq import round_gptq
from raysearch.rounding.guided_moments import observe_guided_moments
from raysearch.rounding.nearest import round_nearest
from raysearch.rounding.problem import Inputs, Problem, Target, gather_inputs
from raysearch.rounding.second_moments import Moment, Moments, Reader, merge_moments, observe_moments

Parts = Sequence[tuple[Reader, Moment]]
"""What the uses of a weight read."""

UNGUIDED = "no finite gradient reaches what it gives, all that it reads counts alike"
"""Note on a weight whose moments could not be guided."""


@dataclass(frozen=True)
class Work:
    """What all units of rounding share.

    Attributes:
        points: quantizer id → point, weights only.
        targets: quantizer id → its schemes.
        settings: method and how it is done.
    """

    points: Mapping[str, QuantizationPoint]
    targets: Mapping[str, tuple[Target, ...]]
    settings: RoundingConfig


def round_weights(
    setup: QuantizerSetup,
    ranges: RangeTable,
    pool: Pool,
    num_shards: int,
    settings: RoundingConfig,
    seed: int = 0,
) -> RoundingTable:
    """Round every weight to each of its schemes.

    "nearest" takes what the quantizers themselves round to. "gptq" first takes the second moments of what
    each weight is multiplied with in the float model, then chooses codes and scales by them; `round_gptq`
    says how. Since inputs are those of the float model, no weight depends on another, and the table is good
    for every assignment.

    With `settings.guided` a vector counts with the squared gradients of what is made of it; no two weights
    then share moments. See `observe_guided_moments`.

    Work: a unit for each `settings.unit_shards` calibration shards, one forward a shard, whose sums are added
    in key order; then a unit for all weights that read the same, which share one factor. Keys and sizes do
    not depend on the number of workers. Bytes: 4·d² a unit of shards and distinct input, which the driver
    holds until all are there; of their sums it holds two and three times 8·d² while it adds, a worker one of
    them with its factor, six times 8·d² while it factors.

    Args:
        setup: points and groups; and the schemes of the groups.
        ranges: calibrated ranges, where scales start from.
        pool: its replicas hold the float model and the shards named "calibration".
        num_shards: how many shards there are.
        settings: method and how it is done.
        seed: the run's seed; only guided moments are drawn.

    Raises:
        DataError: what a weight reads is NaN or infinite; names the weight.
    """
    points = setup.of_kind("weight")
    targets = {name: make_targets(setup, ranges, point) for name, point in points.items()}
    work = Work(points, targets, settings)
    if settings.method == "nearest":
        units: dict[Key, tuple[object, ...]] = {("weights", name): ((name,), (), 1) for name in points}
    else:
        moments = take_moments(pool, tuple(points), num_shards, settings, seed)
        units = {
            ("weights", names[0]): (names, parts, moments.num_samples)
            for names, parts in _by_inputs(points, moments)
        }
    answers = dict(pool.run(round_unit, units, (work,)))
    tables = [RoundingTable.from_bytes(answers[key]["table"].tobytes()) for key in units]
    together = RoundingTable.merge(tables)
    return RoundingTable.merge(together.of(name) for name in points)


def round_unit(
    replica: Replica, work: Work, names: Sequence[str], parts: Parts, num_samples: int
) -> UnitValue:
    """Unit: all schemes of the weights that read the same, as the bytes of a table.

    Args:
        replica: holds the float weights.
        work: points, schemes and settings.
        names: the weights.
        parts: what each of them reads.
        num_samples: samples that `parts` are sums over.
    """
    weights: dict[tuple[str, Scheme], RoundedWeight] = {}
    needs_inputs = work.settings.method == "gptq"
    with torch.no_grad():
        inputs: Inputs | None = None
        notes: tuple[str, ...] = ()
        if needs_inputs:
            inputs, notes = gather_inputs(work.points[names[0]], parts, work.settings, replica.device)
            if work.settings.guided and parts and not parts[0][0].is_guided:
                notes = (*notes, UNGUIDED)
        for name in names:
            weight = replica.model.get_parameter(name).detach()
            problem = Problem(work.points[name], weight, work.targets[name], inputs, num_samples, notes)
            rounded = round_gptq(problem, work.settings) if needs_inputs else round_nearest(problem)
            weights |= {(name, scheme): value for scheme, value in rounded.items()}
    return {"table": np.frombuffer(RoundingTable(weights).to_bytes(), np.uint8)}


def take_moments(
    pool: Pool, names: tuple[str, ...], num_shards: int, settings: RoundingConfig, seed: int
) -> Moments:
    """The second moments of all weights over the calibration shards, `unit_shards` of them in a unit.

    Args:
        pool: its replicas hold the float model and the shards named "calibration".
        names: the weights.
        num_shards: how many calibration shards there are.
        settings: shards a unit (the last may have fewer), and whether moments are guided.
        seed: the run's seed.
    """
    step = settings.unit_shards
    spans = [(first, min(first + step, num_shards)) for first in range(0, num_shards, step)]
    answers: dict[Key, UnitValue]
    if settings.guided:
        units: dict[Key, tuple[object, ...]] = {("guided", first): (first, last) for first, last in spans}
        answers = dict(pool.run(observe_guided_moments, units, (names, seed)))
    else:
        units = {("moments", first): (first, last) for first, last in spans}
        answers = dict(pool.run(observe_moments, units, (names,)))
    return merge_moments(Moments.from_value(answers.pop(key)) for key in units)


def _by_inputs(
    points: Mapping[str, QuantizationPoint], moments: Moments
) -> list[tuple[tuple[str, ...], Parts]]:
    """Weights that read the same in the same way, with what they read; in the order of the points."""
    uses: dict[str, list[tuple[Reader, Moment]]] = {name: [] for name in points}
    for readers, moment in moments.sums.items():
        for reader in readers:
            uses[reader.weight].append((reader, moment))
    together: dict[object, list[str]] = {}
    for name, parts in uses.items():
        if any(reader.is_guided for reader, _ in parts):
            # Other uses have no part in the outputs, and their sums are of another unit.
            uses[name] = parts = [(reader, moment) for reader, moment in parts if reader.is_guided]
        key = tuple((id(moment), r.kind, r.rows, r.columns, r.groups) for r, moment in parts)
        # A weight that nothing is known of stands alone, as does one of another shape.
        together.setdefault((key or name, points[name].shape), []).append(name)
    return [(tuple(names), uses[names[0]]) for names in together.values()]


def make_targets(setup: QuantizerSetup, ranges: RangeTable, point: QuantizationPoint) -> tuple[Target, ...]:
    """The schemes that a weight is rounded to."""
    targets = []
    for scheme in setup.group_of(point.id).schemes:
        effective = point.at(scheme)
        start = storable_range(ranges[point.id, scheme], effective)
        levels = point_levels(effective, scheme.num_bits, signed=start.signed)
        targets.append(Target(scheme, effective, levels, start))
    return tuple(targets)
