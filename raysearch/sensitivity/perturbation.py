"""Perturbations: ‖Q(W) − W‖² of every weight at every width, by the quantizer that is deployed."""

from __future__ import annotations

import numpy as np

from raysearch.cluster.pool import Key, Pool, UnitValue
from raysearch.evaluation import Replica
from raysearch.records import QuantizerSetup, RangeTable
from raysearch.simulation import DeployedWeights


def measure_perturbations(
    setup: QuantizerSetup, ranges: RangeTable, pool: Pool
) -> dict[tuple[str, int], float]:
    """(quantizer id, bit-width) → ‖Q(W) − W‖²; one unit a weight, one fake-quantization a width.

    Args:
        setup: points and groups; every weight is taken at each width of its group.
        ranges: calibrated ranges.
        pool: its replicas hold the float model.
    """
    units: dict[Key, tuple[object, ...]] = {(name,): (name,) for name in setup.of_kind("weight")}
    errors = dict(pool.run(perturb, units, (setup, ranges)))
    return {
        (name, bits): float(errors[name,][str(bits)])
        for name in setup.of_kind("weight")
        for bits in setup.group_of(name).bit_widths
    }


def perturb(replica: Replica, setup: QuantizerSetup, ranges: RangeTable, name: str) -> UnitValue:
    """Unit: the squared error of one weight at each of its widths, keyed by the width.

    Args:
        replica: holds the float weights.
        setup: points and groups.
        ranges: calibrated ranges.
        name: the weight.
    """
    weight = replica.model.get_parameter(name).detach()
    deployed = DeployedWeights({name: weight}, setup, ranges)
    errors = {}
    for bits in setup.group_of(name).bit_widths:
        error = deployed.make(name, bits) - weight
        errors[str(bits)] = np.array(float(error.double().square().sum()))
    return errors
