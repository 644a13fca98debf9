"""The trace of the empirical Fisher matrix: mean squared norm of per-sample gradients at the true labels.

F_ll = mean_n ∇ℓ_n ∇ℓ_nᵀ, ℓ_n the loss of sample n with its own label. It is not the Gauss-Newton matrix, and
far from it where the model fits its labels; it is what Fisher-weighted quantization uses. Source: Kunstner et
al., NeurIPS 2019, arXiv:1905.12558.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from raysearch.config.sensitivity import TraceLoss
from raysearch.errors import ConfigError, DataError
from raysearch.evaluation import Batch, DataSet, Replica, run_in_microbatches
from raysearch.evaluation.batches import take
from raysearch.evaluation.forward import frozen_eval
from raysearch.sensitivity.estimators.gauss_newton import CHUNK_SIZE, side_by_side
from raysearch.sensitivity.estimators.loss_at_outputs import loss_gradient
from raysearch.sensitivity.estimators.sample_gradients import SampleGradients, enable


class EmpiricalFisher:
    """‖∇_W ℓ_n‖² of every sample; the task's loss is taken to be a mean over samples.

    Work for a shard: two forwards and one backward to the layers' outputs.

    Args:
        chunk_size: samples whose graph is held at once; it changes rounding only.
    """

    name = "fisher"
    deterministic = True
    per_sample = True

    def __init__(self, *, chunk_size: int = CHUNK_SIZE) -> None:
        if chunk_size < 1:
            raise ConfigError(f"chunk_size of the estimator 'fisher' is {chunk_size}; it must be at least 1.")
        self.chunk_size = chunk_size

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
        """The same row hi − lo times; always of the task's loss, whatever `loss` says. See `TraceEstimator`.

        Raises:
            TaskError: the task has no loss, or see `loss_gradient`.
            DataError: a gradient is not finite.
        """
        batch = replica.shard(DataSet.CALIBRATION, shard)
        slopes = loss_gradient(replica, batch, "sensitivity.estimator is 'fisher', but")
        chunks = []

        def norms_of(part: tuple[Batch, Tensor]) -> dict[str, np.ndarray]:
            found = SampleGradients(replica, weights, part[0]).squared_norms([part[1]])
            return {name: norms.numpy() for name, norms in found.items()}

        with frozen_eval(replica.model):
            enable(replica)
            for start in range(0, len(slopes), self.chunk_size):
                chunks.append(
                    run_in_microbatches(
                        norms_of,
                        take((batch, slopes), start, start + self.chunk_size),
                        replica.microbatches("gradients"),
                        combine=side_by_side,
                        name=f"calibration shard {shard} with its gradients",
                    )
                )
        rows = {name: values[0] for name, values in side_by_side(chunks).items()}
        for name, row in rows.items():
            if not np.isfinite(row).all():
                raise DataError(
                    f"the gradient of '{name}' is not finite on calibration shard {shard}. Mend the data, or "
                    f"leave the layer float (placement.ignored_scopes)."
                )
        return {name: np.tile(row, (hi - lo, 1)) for name, row in rows.items()}
