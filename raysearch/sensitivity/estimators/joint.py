"""Joint Hutchinson: one probe for all weights at once, read block by block; for comparison.

With v = (v_1 … v_L) the block v_lᵀ (Hv)_l has the mean Tr(H_ll), but Σ_{k≠l} v_lᵀ H_lk v_k comes on top as
noise: about 90 % of the variance. It is the scheme of NNCF's HAWQ initialisation and of PyHessian read per
block.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from raysearch.config.sensitivity import TraceLoss
from raysearch.evaluation import Batch, Replica
from raysearch.seeding import derive_seed
from raysearch.sensitivity.estimators.products import Block, in_pieces, rademacher, weight_blocks


class JointHutchinson:
    """A draw is v_lᵀ (Hv)_l of one Rademacher probe for all weights still measured.

    Work of a call with P draws: one forward and one gradient with its graph, then P Hessian-vector products
    over all weights together.
    """

    name = "joint"
    deterministic = False
    per_sample = False

    def draw(
        self,
        replica: Replica,
        weights: tuple[str, ...],
        loss: TraceLoss,
        seed: int,
        shard: int,
        lo: int,
        hi: int,
    ) -> Mapping[str, np.ndarray]:
        """See `TraceEstimator.draw`."""

        def probe(batch: Batch, reference: Tensor) -> dict[str, np.ndarray]:
            found = {name: np.zeros((hi - lo, 1)) for name in weights}
            with weight_blocks(replica, weights, loss, batch, reference) as blocks:
                reached = {name: block for name, block in blocks.items() if block.gradient is not None}
                for k in range(lo, hi):
                    seeds = {name: derive_seed(seed, "traces", name, shard, k) for name in reached}
                    for name, value in _probe(reached, seeds).items():
                        found[name][k - lo, 0] = value
            return found

        return in_pieces(replica, shard, probe)


def _probe(blocks: Mapping[str, Block], seeds: Mapping[str, int]) -> dict[str, float]:
    gradients = [block.gradient for block in blocks.values() if block.gradient is not None]
    if not gradients:
        return {}
    probes = [rademacher(block.weight, seeds[name]) for name, block in blocks.items()]
    weights = [block.weight for block in blocks.values()]
    found = torch.autograd.grad(gradients, weights, probes, retain_graph=True, materialize_grads=True)
    return {
        name: float((product.double() * v.double()).sum())
        for name, product, v in zip(blocks, found, probes, strict=True)
    }
