"""Perturbations: ‖Q(W) − W‖² of every weight at every scheme, by the quantizer that is deployed."""

from __future__ import annotations

import numpy as np

from raysearch.cluster.pool import Key, Pool, UnitValue
from raysearch.evaluation import Replica
from raysearch.records import QuantizerSetup, RangeTable, Scheme
from raysearch.simulation import DeployedWeights


def measure_perturbations(
    setup: QuantizerSetup, ranges: RangeTable, pool: Pool
) -> dict[tuple[str, Scheme], float]:
    """(quantizer id, scheme) → ‖Q(W) − W‖²; one unit a weight, one fake-quantization a scheme.

    Args:
        setup: points and groups; every weight is taken at each scheme of its group.
        ranges: calibrated ranges.
        pool: its replicas hold the float model.
    """
    units: dict[Key, tuple[object, ...]] = {
        (name,): (name, ranges.of(name)) for name in setup.of_kind("weight")
    }
    errors = dict(pool.run(perturb, units, (setup,)))
    return {
        (name, scheme): float(errors[name,][str(scheme)])
        for name in setup.of_kind("weight")
        for scheme in setup.group_of(name).schemes
    }


def perturb(replica: Replica, setup: QuantizerSetup, name: str, ranges: RangeTable) -> UnitValue:
    """Unit: the squared error of one weight at each of its schemes, keyed by the scheme.

    Args:
        replica: holds the float weights.
        setup: points and groups.
        name: the weight.
        ranges: its calibrated ranges.
    """
    weight = replica.weight(name)
    deployed = DeployedWeights({name: weight}, setup, ranges)
    errors = {}
    for scheme in setup.group_of(name).schemes:
        error = deployed.make(name, scheme) - weight
        errors[str(scheme)] = np.array(float(error.double().square().sum()))
    return errors
