"""Perturbations: ‖Q(W) − W‖² of every weight at every width, by the quantizer that is deployed."""

from __future__ import annotations

import numpy as np
import torch

from raysearch.cluster.pool import Key, Pool, UnitValue
from raysearch.evaluation import Replica
from raysearch.quantizer import make_quantizer
from raysearch.records import QuantizerSetup, RangeTable


def measure_perturbations(
    setup: QuantizerSetup, ranges: RangeTable, pool: Pool
) -> dict[tuple[str, int], float]:
    """(quantizer id, bit-width) → ‖Q(W) − W‖²; one unit a weight, one fake-quantization a width."""
    units: dict[Key, tuple[object, ...]] = {(name,): (name,) for name in setup.of_kind("weight")}
    got = dict(pool.run(perturb, units, (setup, ranges)))
    return {
        (name, bits): float(got[name,][str(bits)])
        for name in setup.of_kind("weight")
        for bits in setup.group_of(name).bit_widths
    }


def perturb(replica: Replica, setup: QuantizerSetup, ranges: RangeTable, name: str) -> UnitValue:
    """Unit: the squared error of one weight at each of its widths, keyed by the width."""
    weight = replica.model.get_parameter(name).detach()
    quantizer = make_quantizer(setup.points[name]).to(weight.device)
    errors = {}
    with torch.no_grad():
        for bits in setup.group_of(name).bit_widths:
            quantizer.set_range(bits, ranges[name, bits])
            errors[str(bits)] = np.array(float((quantizer(weight) - weight).double().square().sum()))
    return errors
