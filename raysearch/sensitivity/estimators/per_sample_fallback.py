"""Per-sample squared norms by a loop over the samples, for weights whose use no recorded call explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from raysearch.evaluation import Replica, output_tensor
from raysearch.evaluation.batches import Batch, take


def looped_norms(
    replica: Replica, weights: Mapping[str, Tensor], batch: Batch, columns: Sequence[Tensor]
) -> dict[str, Tensor]:
    """‖J_nᵀ s_n‖² of every weight, column s and sample n, [columns, N] in float64.

    One forward a sample, and one gradient a sample and column: as many operations as N gradients of a batch
    of one. `torch.func.vmap` is not used: it cannot follow a task's own forward.
    """
    num_samples = len(columns[0])
    found = {name: torch.zeros(len(columns), num_samples, dtype=torch.float64) for name in weights}
    for index in range(num_samples):
        output = output_tensor(replica.forward(replica.model, take(batch, index, index + 1)))
        if not output.requires_grad:
            continue
        for number, column in enumerate(columns):
            gradients = torch.autograd.grad(
                output,
                list(weights.values()),
                column[index : index + 1],
                retain_graph=True,
                allow_unused=True,
            )
            for name, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    found[name][number, index] = gradient.to_dense().double().square().sum().cpu()
    return found
