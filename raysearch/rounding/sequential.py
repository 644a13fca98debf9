"""Rounding layer by layer: each makes up for what the layers before it lost when they were quantized.

G  groups of rows that read different inputs    d  inputs of a row    R  rows of a group
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from raysearch.cluster.pool import Key, Pool, UnitValue
from raysearch.config.rounding import RoundingConfig
from raysearch.errors import DataError
from raysearch.evaluation import Replica
from raysearch.records import QuantizationPoint, RangeTable
from raysearch.records.rounding import RoundedWeight, RoundingTable
from raysearch.records.scheme import Scheme
from raysearch.records.winner import Winner
from raysearch.rounding.drift import (
    Deployed,
    Drifts,
    counting_alike,
    drifts_from,
    merge_drifts,
    observe_drift,
    order_of_layers,
    parts_of,
    steps_from,
)
from raysearch.rounding.gptq import round_gptq
from raysearch.rounding.problem import Inputs, Problem, Target, gather_inputs, moments_of_rows
from raysearch.rounding.round_weights import make_targets

PART_COLUMNS = 256
"""Columns of a matrix in float32 that are multiplied with at once."""


@dataclass(frozen=True)
class Step:
    """Weights that read the same, and what they are rounded to.

    Attributes:
        points: the weights.
        targets: the scheme of each.
        settings: how it is done.
    """

    points: tuple[QuantizationPoint, ...]
    targets: tuple[Target, ...]
    settings: RoundingConfig


def round_sequentially(
    winner: Winner, pool: Pool, num_shards: int, settings: RoundingConfig, seed: int = 0
) -> RoundingTable:
    """Round the weights of one assignment anew, in the order in which a forward reads them.

    With x̃ what a layer reads once all before it are quantized as deployed, activations included, and x what
    it read in the float model, the layer is first moved to where its outputs are nearest to the float ones,

        W' = argmin Σ ‖W x − W' x̃‖² + λ‖W' − W‖² = W + W·Σ(x − x̃)x̃ᵀ·(Σ x̃x̃ᵀ + λI)⁻¹,

    λ as `rounding.damping` says, and then rounded by GPTQ with the second moments of x̃. So the rounding error
    of a layer is made up for not only within it, but by all layers behind it.

    Weights that an embedding looks up, or that the data never reaches, keep their codes.

    Work: for each tensor that layers read, units of `settings.unit_shards` calibration shards, two forwards a
    shard; then a unit that rounds one scheme of each weight. Keys and sizes do not depend on the number of
    workers, and sums are added in key order. Bytes: 16·d² a unit (8·d²
    in float32), on the driver for all units of one tensor; a worker that rounds holds as much, and a factor.

    Args:
        winner: the assignment, with the codes of the rounding table.
        pool: its replicas hold the float model and the calibration shards.
        num_shards: how many shards there are.
        settings: how it is done; with `guided` a vector counts as it does in `observe_guided_moments`.
        seed: the run's; only guided moments are drawn.

    Raises:
        DataError: what a weight reads is NaN or infinite, or the forward takes other ways once it is
            quantized; names the weight.

    Source: the asymmetric calibration of Li et al., GPTAQ, 2025 (arXiv 2504.02692).
    """
    setup, ranges = winner.setup, winner.ranges
    schemes = winner.assignment.per_point(setup)
    names = tuple(name for name in setup.of_kind("weight") if name in schemes)
    answers = dict(pool.run(order_of_layers, {("order",): ()}, (names,)))
    steps = steps_from(answers["order",])
    waiting = {name for step in steps for name in step}
    done = tuple(name for name in names if name not in waiting)
    weights: dict[tuple[str, Scheme], RoundedWeight] = {}
    for step_names in steps:
        guided_seed = seed if settings.guided else None
        deployed = Deployed(replace(winner, ranges=ranges), done, guided_seed)
        step = _make_step(step_names, deployed, settings)
        drifts, num_samples = _take_drifts(pool, deployed, step_names[0], num_shards, settings.unit_shards)
        units: dict[Key, tuple[object, ...]] = {("weights", step_names[0]): (step, drifts, num_samples)}
        answers = dict(pool.run(round_step, units))
        rounded = RoundingTable.from_bytes(answers["weights", step_names[0]]["table"].tobytes())
        weights |= rounded.weights
        ranges = RangeTable(ranges.ranges, {**ranges.rounded, **rounded.put_into(ranges).rounded})
        done = (*done, *step_names)
    return RoundingTable(weights)


def round_step(replica: Replica, step: Step, drifts: Drifts, num_samples: int) -> UnitValue:
    """Unit: weights that read the same, moved by the drift of what they read, and rounded.

    Args:
        replica: holds the float weights.
        step: the weights.
        drifts: what they read.
        num_samples: samples that `drifts` are sums over.

    Raises:
        DataError: an input is NaN or infinite; names the weight.
    """
    weights: dict[tuple[str, Scheme], RoundedWeight] = {}
    first = step.points[0]
    drifts = counting_alike(drifts)
    with torch.no_grad():
        # One weight's uses stand for all: they read the same.
        inputs, notes = gather_inputs(first, tuple(parts_of(drifts)), step.settings, replica.device)
        for point, target in zip(step.points, step.targets, strict=True):
            weight = replica.model.get_parameter(point.id).detach()
            if inputs is not None:
                changes = moments_of_rows(
                    point.shape, inputs.layout, [(r, d.change) for r, d in drifts.items()], replica.device
                )
                weight = moved(weight, inputs, [change for _, _, change in changes])
                _check_finite(point, weight)
            problem = Problem(point, weight, (target,), inputs, num_samples, notes)
            for scheme, value in round_gptq(problem, step.settings).items():
                weights[point.id, scheme] = replace(value, method="sequential")
    return {"table": np.frombuffer(RoundingTable(weights).to_bytes(), np.uint8)}


def moved(weight: Tensor, inputs: Inputs, changes: Sequence[Tensor]) -> Tensor:
    """The weight whose outputs on the deployed inputs are nearest to its own on the float model's.

    Args:
        weight: the float weight.
        inputs: of its rows, as deployed, factored.
        changes: Σ (x − x̃) x̃ᵀ of every block of rows, [G, d, d].
    """
    rows_grd = inputs.layout.rows(weight).double()
    parts = []
    for block, change_gdd in zip(inputs.blocks, changes, strict=True):
        part_grd = rows_grd[:, block.first : block.last]
        if block.factor is not None:
            part_grd = part_grd + block.factor.divided(_times(part_grd, change_gdd))
        parts.append(part_grd)
    return inputs.layout.weight(torch.cat(parts, 1), weight.shape).to(weight.dtype)


def _times(rows_grd: Tensor, matrix_gdd: Tensor) -> Tensor:
    """Their product in float64; of a matrix in float32 in parts, so that no second one is made."""
    if matrix_gdd.dtype == rows_grd.dtype:
        return rows_grd @ matrix_gdd
    parts = [rows_grd @ part_gdp.double() for part_gdp in torch.split(matrix_gdd, PART_COLUMNS, 2)]
    return torch.cat(parts, 2)


def _take_drifts(
    pool: Pool, deployed: Deployed, name: str, num_shards: int, unit_shards: int
) -> tuple[Drifts, int]:
    units: dict[Key, tuple[object, ...]] = {
        ("drift", name, first): (name, first, min(first + unit_shards, num_shards))
        for first in range(0, num_shards, unit_shards)
    }
    answers = dict(pool.run(observe_drift, units, (deployed,)))
    parts = [drifts_from(answers[key]) for key in units]
    return merge_drifts([drifts for drifts, _ in parts]), sum(count for _, count in parts)


def _make_step(names: Sequence[str], deployed: Deployed, settings: RoundingConfig) -> Step:
    setup, ranges = deployed.winner.setup, deployed.winner.ranges
    schemes = deployed.winner.assignment.per_point(setup)
    points = tuple(setup.points[name] for name in names)
    targets = []
    for point in points:
        own = make_targets(setup, ranges.calibrated, point)
        targets += [target for target in own if target.scheme == schemes[point.id]]
    return Step(points, tuple(targets), settings)


def _check_finite(point: QuantizationPoint, weight: Tensor) -> None:
    if not bool(torch.isfinite(weight).all()):
        raise DataError(
            f"the weight '{point.id}' becomes NaN or infinite when it makes up for the layers before it; "
            f"raise rounding.damping, or set rounding.refine without 'sequential'."
        )
