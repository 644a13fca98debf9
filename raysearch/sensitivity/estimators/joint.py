"""Joint Hutchinson: one probe for all weights at once, read block by block; for comparison.

With v = (v_1 … v_L) the block v_lᵀ (Hv)_l has the mean Tr(H_ll), but Σ_{k≠l} v_lᵀ H_lk v_k comes on top as
noise: about 90 % of the variance.

Source: the scheme of NNCF's HAWQ initialisation, and of PyHessian (Yao et al., IEEE BigData 2020,
arXiv:1912.07145) read per block.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from raysearch.config.estimators import PER_SAMPLE
from raysearch.evaluation import Batch, ShardView
from raysearch.seeding import derive_seed
from raysearch.sensitivity.estimators.products import Block, in_pieces, rademacher, weight_blocks
from raysearch.sensitivity.estimators.protocol import TraceRequest


class JointHutchinson:
    """A draw is v_lᵀ (Hv)_l of one Rademacher probe for all weights still measured.

    Work of a call with P draws: one forward and one gradient with its graph, then P Hessian-vector products
    over all weights together.
    """

    name = "joint"
    deterministic = False
    per_sample = name in PER_SAMPLE

    def draw(self, view: ShardView, request: TraceRequest) -> Mapping[str, np.ndarray]:
        """See `TraceEstimator.draw`."""

        def probe(batch: Batch, reference: Tensor) -> dict[str, np.ndarray]:
            forms = {name: np.zeros((len(request.draws), 1)) for name in request.weights}
            with weight_blocks(view.replica, request, batch, reference) as blocks:
                reached = {name: block for name, block in blocks.items() if block.gradient is not None}
                for row, index in enumerate(request.draws):
                    seeds = {
                        name: derive_seed(request.seed, "traces", name, view.index, index) for name in reached
                    }
                    for name, value in _quadratic_forms(reached, seeds).items():
                        forms[name][row, 0] = value
            return forms

        return in_pieces(view, probe)


def _quadratic_forms(blocks: Mapping[str, Block], seeds: Mapping[str, int]) -> dict[str, float]:
    """v_lᵀ (Hv)_l of every weight l, by one product with the Hessian of all of them."""
    gradients = [block.gradient for block in blocks.values() if block.gradient is not None]
    if not gradients:
        return {}
    weights = [block.weight for block in blocks.values()]
    probes = [rademacher(block.weight, seeds[name]) for name, block in blocks.items()]
    products = torch.autograd.grad(gradients, weights, probes, retain_graph=True, materialize_grads=True)
    return {
        name: float((product.double() * v.double()).sum())
        for name, product, v in zip(blocks, products, probes, strict=True)
    }
