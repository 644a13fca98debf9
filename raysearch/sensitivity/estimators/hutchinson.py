"""Block-wise Hutchinson: a probe of its own for every weight.

For one weight W_l and H_ll = ∂²(mean loss)/∂W_l², a probe v with independent ±1 entries gives
E[vᵀ H_ll v] = Tr(H_ll), and Var[vᵀ H_ll v] = 2 Σ_{i≠j} H_ij²: what the diagonal holds is exact. Probing one
block at a time leaves out the cross-layer terms that make up most of the variance of a joint probe
(`joint.py`).

Source: Hutchinson, Commun. Stat. Simul. Comput. 1990; Dong et al., HAWQ-V2, NeurIPS 2020, section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from raysearch.evaluation import ShardView, batch_size
from raysearch.evaluation.batches import Batch, take
from raysearch.seeding import derive_seed
from raysearch.sensitivity.estimators.products import Block, in_pieces, rademacher, weight_blocks
from raysearch.sensitivity.estimators.protocol import TraceRequest


class Hutchinson:
    """A draw is vᵀ H_ll v of one Rademacher probe a weight.

    Work of a call with P draws: one forward and one gradient with its graph, then P · L Hessian-vector
    products on that graph. With `probe_per_sample` each sample is a batch of its own with probes of its own,
    so all of that once a sample: on small batches overhead makes it several times costlier than the shared
    probe. The draws then average over the samples, and tell the error over data. The mean loss of a batch
    must be the mean of its samples' losses; so it must where a shard does not fit in memory and is taken in
    pieces.

    Args:
        probe_per_sample: a fresh probe for every sample instead of one for the whole shard.
    """

    name = "hutchinson"
    deterministic = False

    def __init__(self, probe_per_sample: bool = False) -> None:
        self.per_sample = probe_per_sample

    def draw(self, view: ShardView, request: TraceRequest) -> Mapping[str, np.ndarray]:
        """See `TraceEstimator.draw`."""

        def probe(batch: Batch, target: Tensor, *sample: int) -> dict[str, np.ndarray]:
            forms = {}
            with weight_blocks(view.replica, request, batch, target) as blocks:
                for name, block in blocks.items():
                    key = ("traces", name, view.index)
                    seeds = [derive_seed(request.seed, *key, index, *sample) for index in request.draws]
                    forms[name] = np.array([_quadratic_form(block, seed) for seed in seeds])
            return forms

        if not self.per_sample:
            draws = in_pieces(view, probe)
            return {name: values[:, None] for name, values in draws.items()}
        batch = view.batch()
        reference = view.float_outputs()
        columns = [
            probe(take(batch, row, row + 1), reference[row : row + 1], row)
            for row in range(batch_size(batch))
        ]
        return {name: np.stack([column[name] for column in columns], axis=1) for name in request.weights}


def _quadratic_form(block: Block, seed: int) -> float:
    """vᵀ H v; 0 where the loss has no curvature in the weight."""
    if block.gradient is None:
        return 0.0
    v = rademacher(block.weight, seed)
    return float((block.product(v) * v.double()).sum())
