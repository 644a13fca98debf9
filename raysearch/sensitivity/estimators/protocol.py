"""What every trace estimator answers: independent draws of Tr(H_ll) on one shard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from raysearch.config.sensitivity import TraceLoss
from raysearch.evaluation import Replica


class TraceEstimator(Protocol):
    """Estimates Tr(H_ll) of every weight's own block, H_ll = ∂²(mean loss of the shard)/∂W_l².

    A draw is one estimate with the right mean, independent of the others, whatever it costs inside: one
    Rademacher probe, a pair of eigen-draws, an XNysTrace of m products. Its seed is made from (run seed,
    name of the weight or none, shard, index of the draw), never from the chunk it is computed in.

    Attributes:
        name: as in `sensitivity.estimator`.
        deterministic: every draw is the same, so one is made and there is no probe error.
        per_sample: whether the draws are known sample by sample.
    """

    name: str
    deterministic: bool
    per_sample: bool

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
        """Draws lo … hi−1 on one calibration shard.

        Returns:
            weight id → float64 [hi − lo, K] of traces (not divided by the number of weights), K the samples
            of the shard where `per_sample`, else 1. The mean over K estimates the shard's trace.
        """
        ...
