"""The rounding stage: the codes and scales that will be deployed, of every weight at every scheme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np
import torch

from raysearch.blockwise import Chain
from raysearch.cluster.pool import Key, Pool, UnitValue, in_order
from raysearch.config.rounding import RoundingConfig
from raysearch.evaluation import Replica
from raysearch.quantizer import point_levels, storable_range
from raysearch.records import QuantizationPoint, QuantizerSetup, RangeTable
from raysearch.records.rounding import RoundedWeight, RoundingTable
from raysearch.records.scheme import Scheme
from raysearch.rounding.block_moments import by_part, observe_block_moments
from raysearch.rounding.gptq import round_gptq
from raysearch.rounding.guided_moments import observe_guided_moments
from raysearch.rounding.nearest import round_nearest
from raysearch.rounding.problem import Inputs, Problem, Target, gather_inputs
from raysearch.rounding.row_slices import (
    RowSlice,
    as_they_lie,
    cut_into_units,
    put_together,
    round_in_pieces,
    rows_by_block,
)
from raysearch.rounding.second_moments import (
    Moment,
    Moments,
    Reader,
    dtype_of_moments,
    merge_moments,
    observe_moments,
)

Parts = Sequence[tuple[Reader, Moment]]
"""What the uses of a weight read."""

MOMENT_BYTES = 2**32
"""Second moments that are taken at once."""

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
    chain: Chain | None = None,
) -> RoundingTable:
    """Round every weight to each of its schemes.

    "nearest" takes what the quantizers themselves round to. "gptq" first takes the second moments of what
    each weight is multiplied with in the float model, then chooses codes and scales by them; `round_gptq`
    says how. Since inputs are those of the float model, no weight depends on another, and the table is good
    for every assignment.

    With `settings.guided` a vector counts with the squared gradients of what is made of it; no two weights
    then share moments. See `observe_guided_moments`.

    Work: a unit for each `settings.unit_shards` calibration shards, one forward a shard, whose sums are added
    in key order; then a unit for all weights that read the same, which share one factor. Weights whose
    moments take more than `MOMENT_BYTES` go in waves, each with forwards of its own; and of `FLOAT32_FROM`
    inputs and more a unit has some of the rows (`cut_into_units`). Keys and sizes do not depend on the number
    of workers.

    Bytes: half a matrix of 8·d² (4·d² in float32) a distinct input and unit of shards, which the driver adds
    up as they come. A worker takes moments as `observe_moments` says, and rounds with one factor at a time:
    six times 8·d², or in float32 once and a half 4·d², and about ten times the rows in float64, of which it
    has a few in hand (`round_in_pieces`).
    So a process peaks at 3.0 GB for 14,336 inputs and 4,096 rows, at 1.4 GB for 4,096, its libraries included
    (benchmarks/results/rounding.md).

    Args:
        setup: points and groups; and the schemes of the groups.
        ranges: calibrated ranges, where scales start from.
        pool: its replicas hold the float model and the shards named "calibration".
        num_shards: how many shards there are.
        settings: method and how it is done.
        seed: the run's seed; only guided moments are drawn.
        chain: the blocks, where the pool's replicas hold one of them at a time; each part is then a wave, its
            moments taken of the hidden states that enter it, which are in the replicas' files.

    Raises:
        DataError: what a weight reads is NaN or infinite; names the weight.
    """
    points = setup.of_kind("weight")
    waves = [tuple(points)] if settings.method == "nearest" else in_waves(points)
    if chain is not None:
        waves = by_part(chain, points)
    parts: dict[tuple[str, Scheme], list[tuple[RowSlice, RoundedWeight]]] = {}
    for names in waves:
        # Of these alone: scales of small groups are a good part of a model.
        targets = {name: make_targets(setup, ranges, points[name]) for name in names}
        work = Work({name: points[name] for name in names}, targets, settings)
        units: dict[Key, tuple[object, ...]] = {}
        if settings.method == "nearest":
            units = {("weights", name): ((RowSlice(name),), (), 1) for name in names}
        else:
            if chain is None:
                moments = take_moments(pool, names, num_shards, settings, seed, is_only=len(waves) == 1)
            else:
                moments = _block_moments(pool, names, num_shards, settings)
            units = _units(work, {name: points[name] for name in names}, moments)
        for key, value in in_order(pool.run(round_unit, units, (work,)), units):
            table = RoundingTable.from_bytes(value["table"].tobytes())
            slices: Sequence[RowSlice] = units[key][0]  # type: ignore[assignment]
            for rows in slices:
                for scheme in table.schemes(rows.name):
                    parts.setdefault((rows.name, scheme), []).append((rows, table[rows.name, scheme]))
    together = RoundingTable({key: put_together(slices) for key, slices in parts.items()})
    return RoundingTable.merge(together.of(name) for name in points)


def in_waves(points: Mapping[str, QuantizationPoint]) -> list[tuple[str, ...]]:
    """The weights whose moments are taken together: neighbours of at most `MOMENT_BYTES`, or one.

    What weights share is not known yet, so each is reckoned with a matrix of its own.
    """
    waves: list[list[str]] = [[]]
    num_bytes = 0
    for name, point in points.items():
        row = point.row
        num_inputs = row.num_channels * row.num_positions if row else prod(point.shape[1:])
        own_bytes = dtype_of_moments(num_inputs).itemsize * num_inputs**2
        if waves[-1] and num_bytes + own_bytes > MOMENT_BYTES:
            waves.append([])
            num_bytes = 0
        num_bytes += own_bytes
        waves[-1].append(name)
    return [tuple(names) for names in waves]


def _units(
    work: Work, points: Mapping[str, QuantizationPoint], moments: Moments
) -> dict[Key, tuple[object, ...]]:
    """Rows of weights that read the same → what they read; the most work first, so that workers end alike."""
    units: dict[Key, tuple[object, ...]] = {}
    flops: dict[Key, int] = {}
    for names, parts in _by_inputs(points, moments):
        cut = cut_into_units([points[name] for name in names], work.targets, parts)
        for slices in cut:
            first = slices[0]
            key: Key = ("weights", first.name, first.first) if first.first else ("weights", first.name)
            units[key] = (slices, parts, moments.num_samples)
            flops[key] = sum(rows.num_products(points[rows.name], parts) for rows in slices)
    return {key: units[key] for key in sorted(units, key=lambda key: flops[key], reverse=True)}


def round_unit(
    replica: Replica, work: Work, slices: Sequence[RowSlice], parts: Parts, num_samples: int
) -> UnitValue:
    """Unit: all schemes of weights that read the same, or of some rows of theirs, as the bytes of a table.

    Args:
        replica: holds the float weights.
        work: points, schemes and settings.
        slices: the weights.
        parts: what each of them reads.
        num_samples: samples that `parts` are sums over.
    """
    weights: dict[tuple[str, Scheme], RoundedWeight] = {}
    needs_inputs = work.settings.method == "gptq"
    with torch.no_grad():
        inputs: Inputs | None = None
        notes: tuple[str, ...] = ()
        if needs_inputs:
            point = work.points[slices[0].name]
            inputs, notes = gather_inputs(point, parts, work.settings, replica.device)
            if work.settings.guided and parts and not parts[0][0].is_guided:
                notes = (*notes, UNGUIDED)
        for rows in slices:
            name = rows.name
            weight = replica.weight(name)
            every = Problem(work.points[name], weight, work.targets[name], inputs, num_samples, notes)
            problem = rows_by_block(rows.of(every))
            if needs_inputs:
                rounded = round_in_pieces(rows, problem, partial(round_gptq, settings=work.settings))
            else:
                rounded = round_nearest(problem)
            order_r = None if inputs is None else inputs.order_r
            for scheme, value in rounded.items():
                weights[name, scheme] = as_they_lie(value, order_r)
    return {"table": np.frombuffer(RoundingTable(weights).to_bytes(), np.uint8)}


def take_moments(
    pool: Pool,
    names: tuple[str, ...],
    num_shards: int,
    settings: RoundingConfig,
    seed: int,
    *,
    is_only: bool = True,
) -> Moments:
    """The second moments of all weights over the calibration shards, `unit_shards` of them in a unit.

    Args:
        pool: its replicas hold the float model and the shards named "calibration".
        names: the weights.
        num_shards: how many calibration shards there are.
        settings: shards a unit (the last may have fewer), and whether moments are guided.
        seed: the run's seed.
        is_only: whether these are all weights of the run; else the keys name the first of them.
    """
    step = settings.unit_shards
    kind = "guided" if settings.guided else "moments"
    units: dict[Key, tuple[object, ...]] = {}
    for first in range(0, num_shards, step):
        key: Key = (kind, first) if is_only else (kind, first, names[0])
        units[key] = (first, min(first + step, num_shards))
    if settings.guided:
        answers = pool.run(observe_guided_moments, units, (names, seed))
    else:
        answers = pool.run(observe_moments, units, (names,))
    return merge_moments(Moments.from_value(value) for _, value in in_order(answers, units))


def _block_moments(pool: Pool, names: tuple[str, ...], num_shards: int, settings: RoundingConfig) -> Moments:
    """The second moments of the weights of one part, in the units and the order of `take_moments`."""
    step = settings.unit_shards
    units: dict[Key, tuple[object, ...]] = {
        ("block moments", first, names[0]): (first, min(first + step, num_shards))
        for first in range(0, num_shards, step)
    }
    answers = pool.run(observe_block_moments, units, (names,))
    return merge_moments(Moments.from_value(value) for _, value in in_order(answers, units))


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
