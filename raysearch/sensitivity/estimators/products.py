"""Hessian-vector products of single weights on one retained graph, and the probes they are taken with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from raysearch.errors import TaskError
from raysearch.evaluation import Replica, output_tensor, run_in_microbatches
from raysearch.evaluation.batches import Batch
from raysearch.evaluation.forward import frozen_eval
from raysearch.sensitivity.estimators.protocol import TraceLoss


@dataclass(frozen=True)
class Block:
    """One weight and the gradient of the mean loss in it, with its graph.

    Attributes:
        weight: the parameter W_l.
        gradient: ∂(mean loss)/∂W_l; None where the loss does not reach the weight, or only linearly.
    """

    weight: Tensor
    gradient: Tensor | None

    def product(self, direction: Tensor) -> Tensor:
        """H_ll v as float64, in the shape of `direction`; zeros where there is no curvature.

        Work: one Hessian-vector product on the retained graph, in the model's own precision.
        """
        if self.gradient is None:
            return torch.zeros_like(direction, dtype=torch.float64)
        v = direction.reshape(self.weight.shape).to(self.weight.dtype)
        (product,) = torch.autograd.grad(
            self.gradient, self.weight, v, retain_graph=True, materialize_grads=True
        )
        return product.double().reshape(direction.shape)


@contextmanager
def weight_blocks(
    replica: Replica, weights: tuple[str, ...], loss: TraceLoss, batch: Batch, reference: Tensor
) -> Iterator[Mapping[str, Block]]:
    """The blocks of some weights on one batch; flags, generators and the model are put back afterwards.

    Work: one forward and one gradient with its graph, which is kept until the context ends.

    Args:
        replica: the float model and its losses.
        weights: ids of the weights.
        loss: what is differentiated; its mean over the batch.
        batch: the samples.
        reference: the float model's outputs on them.

    Raises:
        TaskError: the task's loss is wanted and there is none, or it is no scalar.
    """
    parameters = {name: replica.model.get_parameter(name) for name in weights}
    # The fused attention kernels have no double backward on CPU.
    with frozen_eval(replica.model), sdpa_kernel(SDPBackend.MATH):
        replica.model.requires_grad_(False)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        value = mean_loss(replica, loss, batch, reference)
        found: tuple[Tensor | None, ...] = (None,) * len(parameters)
        if value.requires_grad:
            found = torch.autograd.grad(
                value, list(parameters.values()), create_graph=True, allow_unused=True
            )
        yield {
            name: Block(parameter, g if g is not None and g.requires_grad else None)
            for (name, parameter), g in zip(parameters.items(), found, strict=True)
        }


def in_pieces(
    replica: Replica,
    shard: int,
    draw: Callable[[Batch, Tensor], Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Draws on a shard and its float outputs; where the graph does not fit in memory, on pieces of it.

    The mean loss of a shard is the mean of its pieces' weighted by their samples, and so is its Hessian. With
    the same probes the weighted mean of vᵀ H v over the pieces is therefore the shard's, up to rounding; of
    estimates that are not linear in H it is another one with the same mean.

    Args:
        replica: holds the shard.
        shard: calibration shard.
        draw: (samples, their float outputs) → weight id → values, of the same shape for any samples.
    """

    def sized(part: tuple[Batch, Tensor]) -> tuple[int, Mapping[str, np.ndarray]]:
        return len(part[1]), draw(*part)

    def weighted(
        parts: Sequence[tuple[int, Mapping[str, np.ndarray]]],
    ) -> tuple[int, Mapping[str, np.ndarray]]:
        total = sum(size for size, _ in parts)
        zero = np.zeros(1)
        means = {name: sum((size * got[name] for size, got in parts), zero) / total for name in parts[0][1]}
        return total, means

    batch, reference = replica.shard("calibration", shard), replica.float_outputs("calibration", shard)
    _, found = run_in_microbatches(
        sized,
        (batch, reference),
        replica.microbatches("products"),
        combine=weighted,
        name=f"calibration shard {shard} with its second derivatives",
    )
    return dict(found)


def estimate_blocks(
    replica: Replica,
    weights: tuple[str, ...],
    loss: TraceLoss,
    shard: int,
    draws: Iterable[int],
    estimate: Callable[[Block, str, int], float],
    exact_size: int,
) -> dict[str, np.ndarray]:
    """Draws of estimators that spend several products on each block of a shard.

    Args:
        replica: the float model and its losses.
        weights: ids of the weights.
        loss: what is differentiated.
        shard: calibration shard.
        draws: indices of the draws.
        estimate: (block, weight id, index of the draw) → Tr(H_ll).
        exact_size: weights of at most so many elements are measured by all their columns instead.

    Returns:
        weight id → float64 [draws, 1]; 0 where the loss does not reach the weight. In pieces, where memory
        asks for it; see `in_pieces`.
    """
    indices = list(draws)

    def draw(batch: Batch, reference: Tensor) -> dict[str, np.ndarray]:
        found = {}
        with weight_blocks(replica, weights, loss, batch, reference) as blocks:
            for name, block in blocks.items():
                if block.gradient is None:
                    values = [0.0] * len(indices)
                elif block.weight.numel() <= exact_size:
                    values = [exact_trace(block)] * len(indices)
                else:
                    values = [estimate(block, name, index) for index in indices]
                found[name] = np.array(values, dtype=np.float64)[:, None]
        return found

    return in_pieces(replica, shard, draw)


def mean_loss(replica: Replica, loss: TraceLoss, batch: Batch, reference: Tensor) -> Tensor:
    """The scalar that is differentiated: the mean divergence from `reference`, or the task's loss."""
    outputs = replica.forward(replica.model, batch)
    if loss == "divergence":
        return replica.divergence.per_sample(output_tensor(outputs), reference).mean()
    if replica.loss is None:
        raise TaskError("sensitivity.trace_loss is 'loss', but the Task has no loss; set it to 'divergence'.")
    value = replica.loss(outputs, batch)
    if value.numel() != 1:
        raise TaskError(f"the task's loss has shape {tuple(value.shape)}; it must be a scalar.")
    return value


def rademacher(weight: Tensor, seed: int) -> Tensor:
    """Independent ±1 in the weight's shape, type and place."""
    # Drawn on the CPU whatever the device, so that every worker draws the same probe.
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(0, 2, weight.shape, generator=generator)
    return draw.to(weight.device, weight.dtype) * 2 - 1


def orthonormal(rows: int, columns: int, seed: int, device: torch.device) -> Tensor:
    """Columns of a uniformly (Haar) distributed orthonormal frame, [rows, columns], float64."""
    q: Tensor = torch.linalg.qr(gaussian(rows, columns, seed, device)).Q
    return q


def gaussian(rows: int, columns: int, seed: int, device: torch.device) -> Tensor:
    """Independent standard normal entries, [rows, columns], float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(device)


def products(block: Block, directions: Tensor) -> Tensor:
    """H_ll V for the columns of V, [n, m], float64; m Hessian-vector products."""
    columns = [block.product(directions[:, j].contiguous()) for j in range(directions.shape[1])]
    return torch.stack(columns, dim=1)


def exact_trace(block: Block) -> float:
    """Tr(H_ll) from all n columns; n Hessian-vector products."""
    size = block.weight.numel()
    unit = torch.zeros(size, dtype=torch.float64, device=block.weight.device)
    total = 0.0
    for index in range(size):
        unit[index] = 1.0
        total += float(block.product(unit)[index])
        unit[index] = 0.0
    return total
