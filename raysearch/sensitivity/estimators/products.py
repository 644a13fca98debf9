"""Hessian-vector products of single weights on one retained graph, and the probes they are taken with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from raysearch.config.sensitivity import TraceLoss
from raysearch.errors import TaskError
from raysearch.evaluation import Judged, Replica, ShardView, batch_size, run_in_microbatches
from raysearch.evaluation.batches import Batch
from raysearch.evaluation.forward import frozen_eval
from raysearch.sensitivity.estimators.protocol import TraceRequest

_Value = TypeVar("_Value", np.ndarray, Tensor)
Multiply = Callable[[Tensor], Tensor]
"""V → H_ll V for the columns of V, [n, m], float64."""


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
    replica: Replica, request: TraceRequest, batch: Batch, reference: Judged
) -> Iterator[Mapping[str, Block]]:
    """The blocks of some weights on one batch; flags, generators and the model are put back afterwards.

    Work: one forward and one gradient with its graph, which is kept until the context ends.

    Args:
        replica: the float model and its losses.
        request: the weights, and what is differentiated: its mean over the batch.
        batch: the samples.
        reference: the float model's outputs on them.

    Raises:
        TaskError: the task's loss is to be differentiated, and there is none, or it is no scalar.
    """
    parameters = {name: replica.model.get_parameter(name) for name in request.weights}
    # The fused attention kernels have no double backward on CPU.
    with frozen_eval(replica.model), sdpa_kernel(SDPBackend.MATH):
        replica.model.requires_grad_(False)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        value = mean_loss(replica, request.loss, batch, reference)
        gradients: tuple[Tensor | None, ...] = (None,) * len(parameters)
        if value.requires_grad:
            gradients = torch.autograd.grad(
                value, list(parameters.values()), create_graph=True, allow_unused=True
            )
        blocks = {}
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            # A gradient that does not depend on the weights has no graph: the loss is linear in this one.
            is_curved = gradient is not None and gradient.requires_grad
            blocks[name] = Block(parameter, gradient if is_curved else None)
        yield blocks


def in_pieces(view: ShardView, draw: Callable[[Batch, Judged], Mapping[str, _Value]]) -> dict[str, _Value]:
    """Draws on a shard and its float outputs; where the graph does not fit in memory, on pieces of it.

    The mean loss of a shard is the mean of its pieces' weighted by their samples, and so is its Hessian. What
    is linear in the Hessian, such as vᵀ H v or H v of the same v, is therefore the weighted mean of the
    pieces', up to rounding.

    Args:
        view: the shard.
        draw: (samples, their float outputs) → weight id → values linear in the Hessian, of the same shape for
            any samples.
    """

    def sized_draw(part: tuple[Batch, Judged]) -> tuple[int, Mapping[str, _Value]]:
        return batch_size(part[1]), draw(*part)

    _, values = run_in_microbatches(
        sized_draw,
        (view.batch(), view.float_outputs()),
        view.replica.microbatches("products"),
        combine=_weighted_mean,
        name=f"{view.name} with its second derivatives",
    )
    return dict(values)


def _weighted_mean(parts: Sequence[tuple[int, Mapping[str, _Value]]]) -> tuple[int, Mapping[str, _Value]]:
    """Of (samples, values of each weight) of the pieces of a shard."""
    total = sum(size for size, _ in parts)
    first_size, first_values = parts[0]
    sums = {name: first_size * value for name, value in first_values.items()}
    for size, values in parts[1:]:
        sums = {name: value + size * values[name] for name, value in sums.items()}
    return total, {name: value / total for name, value in sums.items()}


class ShardProducts:
    """Products with the blocks of one shard; in pieces, where its graph does not fit in memory.

    The graph of the whole shard is kept between calls, until the context ends. One that does not fit is built
    anew in each call, piece by piece; its cost is that of a few products beside the m of the call.

    Args:
        view: the shard.
        request: the weights, and what is differentiated.
    """

    def __init__(self, view: ShardView, request: TraceRequest) -> None:
        self._view = view
        self._request = request
        self._size = batch_size(view.float_outputs())
        self._stack = ExitStack()
        self._blocks: dict[str, Block] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop_graph()

    def of(self, name: str, directions: Tensor) -> Tensor:
        """H_ll V for the columns of V, [n, m], float64; zeros where the loss does not reach the weight."""

        def multiply(batch: Batch, reference: Judged) -> dict[str, Tensor]:
            with self._blocks_on(name, batch, reference) as blocks:
                columns = [blocks[name].product(column.contiguous()) for column in directions.unbind(1)]
            return {name: torch.stack(columns, dim=1)}

        return in_pieces(self._view, multiply)[name]

    @contextmanager
    def _blocks_on(self, name: str, batch: Batch, reference: Judged) -> Iterator[Mapping[str, Block]]:
        replica = self._view.replica
        if batch_size(reference) < self._size:
            only = replace(self._request, weights=(name,))
            with weight_blocks(replica, only, batch, reference) as blocks:
                yield blocks
            return
        try:
            if not self._blocks:
                entered = weight_blocks(replica, self._request, batch, reference)
                self._blocks = dict(self._stack.enter_context(entered))
            yield self._blocks
        except Exception:
            # Smaller pieces find no room either while the graph of all samples is there.
            self._drop_graph()
            raise

    def _drop_graph(self) -> None:
        self._blocks = {}
        self._stack.close()


def estimate_blocks(
    view: ShardView,
    request: TraceRequest,
    estimate: Callable[[Tensor, Multiply, str, int], float],
    exact_size: int,
) -> dict[str, np.ndarray]:
    """Draws of estimators that spend several products on each block of a shard.

    Where memory suffices only for pieces of the shard, the draws are the same up to rounding: it is the
    products that are put together from the pieces, see `ShardProducts`.

    Args:
        view: the shard.
        request: weights and draws.
        estimate: (weight, product with its block, weight id, index of the draw) → Tr(H_ll).
        exact_size: weights of at most so many elements are measured by all their columns instead.

    Returns:
        weight id → float64 [draws, 1]; 0 where the loss does not reach the weight.
    """
    draws = {}
    with ShardProducts(view, request) as products:
        for name in request.weights:
            weight = view.replica.model.get_parameter(name)
            multiply = partial(products.of, name)
            if weight.numel() <= exact_size:
                eye = torch.eye(weight.numel(), dtype=torch.float64, device=weight.device)
                values = [float(multiply(eye).trace())] * len(request.draws)
            else:
                values = [estimate(weight, multiply, name, index) for index in request.draws]
            draws[name] = np.array(values, dtype=np.float64)[:, None]
    return draws


def mean_loss(replica: Replica, loss: TraceLoss, batch: Batch, reference: Judged) -> Tensor:
    """The scalar that is differentiated: the mean divergence from `reference`, or the task's loss.

    Args:
        replica: the float model and its losses.
        loss: which of the two.
        batch: the samples.
        reference: the float model's outputs on them, without graph.

    Raises:
        TaskError: the task has no loss, or it is no scalar.
    """
    outputs = replica.forward(replica.model, batch)
    if loss == "divergence":
        judged = replica.divergence.judged(outputs, batch)
        return replica.divergence.per_sample(judged, reference).mean()
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
    bits = torch.randint(0, 2, weight.shape, generator=generator)
    return bits.to(weight.device, weight.dtype) * 2 - 1


def orthonormal(rows: int, columns: int, seed: int, device: torch.device) -> Tensor:
    """Columns of a uniformly (Haar) distributed orthonormal frame, [rows, columns], float64.

    Args:
        rows: length of a column.
        columns: how many; at most `rows`.
        seed: of the draw.
        device: where the result lies; drawn on the CPU, so it is alike on every device.
    """
    q: Tensor = torch.linalg.qr(gaussian(rows, columns, seed, device)).Q
    return q


def gaussian(rows: int, columns: int, seed: int, device: torch.device) -> Tensor:
    """Independent standard normal entries, [rows, columns], float64.

    Args:
        rows: length of a column.
        columns: how many.
        seed: of the draw.
        device: where the result lies; drawn on the CPU, so it is alike on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(device)
