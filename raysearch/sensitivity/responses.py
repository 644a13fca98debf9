"""Responses: what each option alone does to the output, and the Gram matrix of all of them.

For option q (one group at one width, all else float) let δ_q = z(q) − z⁰ on the calibration samples. To
second order the divergence of a set A of options is ½ Σ_{q,r∈A} K_qr, K_qr = mean over samples of
δ_qᵀ Λ δ_r, Λ the Hessian of the divergence in z at z⁰. One forward an option and shard; no labels, no
backward.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from raysearch.cluster.pool import Key, Pool, UnitValue
from raysearch.evaluation import Replica
from raysearch.records import BitAssignment, Option, QuantizerSetup, RangeTable
from raysearch.sensitivity.quantized import quantized_outputs, quantized_twin


@dataclass(frozen=True)
class Responses:
    """Gram matrix K [num_options, num_options] and the measured divergence of each option alone."""

    gram: npt.NDArray[np.float64]
    divergence: npt.NDArray[np.float64]


def measure_responses(
    setup: QuantizerSetup, ranges: RangeTable, pool: Pool, num_shards: int, *, option_chunk: int
) -> Responses:
    """Responses of all options over the calibration shards.

    Work per unit (option chunk × shard): one forward an option, one float forward a worker and shard.
    Bytes per unit: 8 · option_chunk · samples · outputs back. The Gram block of a shard is summed on the
    driver, shards in order, in float64.
    """
    options = setup.options()
    starts = range(0, len(options), option_chunk)
    units: dict[Key, tuple[object, ...]] = {
        (shard, lo): (shard, options[lo : lo + option_chunk]) for shard in range(num_shards) for lo in starts
    }
    parts: dict[Key, UnitValue] = {}
    blocks: dict[int, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], int]] = {}
    for key, value in pool.run(respond, units, (setup, ranges)):
        parts[key] = value
        shard = int(key[0])
        # A shard is folded into its block as soon as it is complete, so memory holds a few shards only.
        if all((shard, lo) in parts for lo in starts):
            rows = np.concatenate([parts[shard, lo]["weighted"] for lo in starts])
            alone = np.concatenate([parts[shard, lo]["divergence"] for lo in starts])
            # By torch, whose threads the run pins, and not by numpy's BLAS, whose threads it does not.
            flat = torch.from_numpy(rows.reshape(len(options), -1))
            blocks[shard] = ((flat @ flat.T).numpy(), alone, rows.shape[1])
            for lo in starts:
                del parts[shard, lo]
    total = sum(size for _, _, size in blocks.values())
    gram = np.zeros((len(options), len(options)))
    divergence = np.zeros(len(options))
    for shard in range(num_shards):
        block, alone, _ = blocks[shard]
        gram += block
        divergence += alone
    # A matrix product of A with Aᵀ is symmetric only up to rounding.
    return Responses((gram + gram.T) / (2 * total), divergence / total)


def respond(
    replica: Replica,
    setup: QuantizerSetup,
    ranges: RangeTable,
    shard: int,
    options: tuple[Option, ...],
) -> UnitValue:
    """Unit: Λ^½ δ of some options on one shard [options, samples, outputs], and Σ divergence of each."""
    controller = quantized_twin(replica, setup, ranges)
    reference = replica.float_outputs("calibration", shard)
    rows, sums = [], []
    for group, bits in options:
        outputs = quantized_outputs(replica, controller, BitAssignment({group: bits}), "calibration", shard)
        # In float64 before the subtraction: at 8 bits the two are nearly equal.
        delta = outputs.double() - reference.double()
        rows.append(replica.divergence.weighted(delta, reference).cpu())
        sums.append(float(replica.divergence.per_sample(outputs, reference).sum()))
    return {"weighted": torch.stack(rows).numpy(), "divergence": np.array(sums)}
