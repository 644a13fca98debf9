"""The trace of the empirical Fisher matrix: mean squared norm of per-sample gradients at the true labels.

F_ll = mean_n ∇ℓ_n ∇ℓ_nᵀ, ℓ_n the loss of sample n with its own label. It is not the Gauss-Newton matrix, and
far from it where the model fits its labels; it is what Fisher-weighted quantization uses. Source: Kunstner et
al., NeurIPS 2019, arXiv:1905.12558.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from raysearch.config.estimators import PER_SAMPLE
from raysearch.errors import ConfigError
from raysearch.evaluation import Batch, ShardView
from raysearch.sensitivity.estimators.loss_at_outputs import loss_gradient
from raysearch.sensitivity.estimators.protocol import TraceRequest
from raysearch.sensitivity.estimators.sample_gradients import CHUNK_SIZE, SampleGradients, measure_in_chunks


class EmpiricalFisher:
    """‖∇_W ℓ_n‖² of every sample; the task's loss is taken to be a mean over samples.

    Work for a shard: two forwards and one backward to the layers' outputs.

    Args:
        chunk_size: samples whose graph is held at once; it changes rounding only.
    """

    name = "fisher"
    deterministic = True
    per_sample = name in PER_SAMPLE

    def __init__(self, *, chunk_size: int = CHUNK_SIZE) -> None:
        if chunk_size < 1:
            raise ConfigError(f"chunk_size of the estimator 'fisher' is {chunk_size}; it must be at least 1.")
        self.chunk_size = chunk_size

    def draw(self, view: ShardView, request: TraceRequest) -> Mapping[str, np.ndarray]:
        """The same row for every draw; always of the task's loss, whatever the request says.

        See `TraceEstimator`.

        Raises:
            TaskError: the task has no loss, or see `loss_gradient`.
        """
        batch = view.batch()
        slopes = loss_gradient(view.replica, batch, "sensitivity.estimator is 'fisher', but")

        def squared_norms(part: tuple[Batch, Tensor]) -> dict[str, np.ndarray]:
            samples, cotangents = part
            norms = SampleGradients(view, request.weights, samples).squared_norms([cotangents])
            return {name: values.numpy() for name, values in norms.items()}

        rows = measure_in_chunks(view, (batch, slopes), self.chunk_size, squared_norms)
        return {name: np.tile(row, (len(request.draws), 1)) for name, row in rows.items()}
