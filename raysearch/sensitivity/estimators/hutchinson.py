"""Block-wise Hutchinson: a probe of its own for every weight.

For one weight W_l and H_ll = ∂²(mean loss)/∂W_l², a probe v with independent ±1 entries gives
E[vᵀ H_ll v] = Tr(H_ll). Probing one block at a time leaves out the cross-layer terms that make up most of
the variance of a joint probe.

Source: Hutchinson 1990; Dong et al., HAWQ-V2, NeurIPS 2020, section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from raysearch.config.sensitivity import TraceLoss
from raysearch.evaluation import DataSet, Replica, batch_size
from raysearch.evaluation.batches import Batch, take
from raysearch.seeding import derive_seed
from raysearch.sensitivity.estimators.products import Block, in_pieces, rademacher, weight_blocks


class Hutchinson:
    """A draw is vᵀ H_ll v of one Rademacher probe a weight.

    Work of a call with P draws: one forward and one gradient with its graph, then P · L Hessian-vector
    products on that graph. With `probe_per_sample` each sample is a batch of its own with probes of its own,
    so all of that once a sample: on small batches overhead makes it several times dearer than the shared
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

        def probe(part: Batch, target: Tensor, *sample: int) -> dict[str, np.ndarray]:
            with weight_blocks(replica, weights, loss, part, target) as blocks:
                return {
                    name: np.array(
                        [
                            _quadratic(block, derive_seed(seed, "traces", name, shard, k, *sample))
                            for k in range(lo, hi)
                        ]
                    )
                    for name, block in blocks.items()
                }

        if not self.per_sample:
            whole = in_pieces(replica, shard, probe)
            return {name: values[:, None] for name, values in whole.items()}
        batch = replica.shard(DataSet.CALIBRATION, shard)
        reference = replica.float_outputs(DataSet.CALIBRATION, shard)
        columns = [probe(take(batch, i, i + 1), reference[i : i + 1], i) for i in range(batch_size(batch))]
        return {name: np.stack([column[name] for column in columns], axis=1) for name in weights}


def _quadratic(block: Block, seed: int) -> float:
    if block.gradient is None:
        return 0.0
    v = rademacher(block.weight, seed)
    return float((block.product(v) * v.double()).sum())
