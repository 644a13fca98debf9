"""What every trace estimator answers: independent draws of Tr(H_ll) on one shard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from raysearch.config.sensitivity import TraceLoss
from raysearch.evaluation import ShardView


@dataclass(frozen=True)
class TraceRequest:
    """Which draws of which traces are asked for; equal requests give equal draws, whoever answers them.

    Attributes:
        weights: ids of the weights.
        loss: what is differentiated.
        seed: the run's seed.
        draws: indices of the draws. The seed of a draw is made from its index, so draws 3 and 4 are the
            same whether they are computed with draws 0 to 2 or without.
    """

    weights: tuple[str, ...]
    loss: TraceLoss
    seed: int
    draws: range


class TraceEstimator(Protocol):
    """Estimates Tr(H_ll) of every weight's own block, H_ll = ∂²(mean loss of the shard)/∂W_l².

    A draw is one estimate with the right mean, independent of the others, whatever it costs inside: one
    Rademacher probe, a pair of eigen-draws, an XNysTrace of m products. Its seed is made from (run seed,
    name of the weight or none, shard, index of the draw), never from the chunk it is computed in.

    A new estimator is a file in this folder and a line in `config.estimators.ESTIMATORS`;
    `tests/contracts/estimator_contract.py` says what it must do.

    Attributes:
        name: as in `sensitivity.estimator`.
        deterministic: every draw is the same, so one is made and there is no probe error.
        per_sample: whether the draws are known sample by sample.
    """

    name: str
    deterministic: bool
    per_sample: bool

    def draw(self, view: ShardView, request: TraceRequest) -> Mapping[str, np.ndarray]:
        """The requested draws on one shard; the model is left as found, also by an exception.

        Args:
            view: the shard, and the model.
            request: weights and draws.

        Returns:
            weight id → float64 [P, K] of traces (not divided by the number of elements), P the draws in
            their order, K the samples of the shard where `per_sample`, else 1. The mean over K estimates
            the shard's trace.
        """
        ...
