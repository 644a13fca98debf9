"""The task's loss as a function of the judged output alone: its gradient and Hessian, sample by sample."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from raysearch.errors import TaskError
from raysearch.evaluation import Judged, Replica, run_in_microbatches
from raysearch.evaluation.batches import Batch, tensors_of
from raysearch.evaluation.curvature.output_factor import MAX_DENSE, by_position
from raysearch.evaluation.forward import frozen_eval
from raysearch.evaluation.joint_divergence import JointDivergence
from raysearch.evaluation.outputs import flat_rows


def loss_gradient(replica: Replica, batch: Batch, user: str) -> Tensor:
    """N ∂ℓ/∂z for the mean loss ℓ of N samples: row n is the gradient of sample n's own loss, [N, …].

    Args:
        replica: model and loss.
        batch: N samples with their labels.
        user: who asks, for messages.

    Raises:
        TaskError: the task has no loss, or it is no scalar that depends on the judged output alone.
    """
    outputs, value = _loss_of_outputs(replica, batch, user)
    (gradient,) = torch.autograd.grad(value, outputs)
    return gradient * len(outputs)


def loss_curvature(replica: Replica, batch: Batch) -> Tensor:
    """N ∂²ℓ/∂z² per sample and position, [N, P, C, C] in float64.

    Up to 64 outputs a sample are one position; more are divided as the divergence divides them. Work: one
    forward, and C + 1 double backwards through the loss alone.

    Raises:
        TaskError: as `loss_gradient`; there are more than 64 classes; or the loss couples samples or
            positions, so that its Hessian is not of that form.
    """
    outputs, value = _loss_of_outputs(replica, batch, "sensitivity.trace_loss is 'loss', but")
    (gradient,) = torch.autograd.grad(value, outputs, create_graph=True)
    blocks = _blocks(outputs, replica)
    n, size = blocks.shape[0], blocks.shape[-1]
    if size > MAX_DENSE:
        raise TaskError(
            f"the Hessian of the task's loss over {size} outputs is not decomposed (at most {MAX_DENSE}). "
            f"Set sensitivity.trace_loss to 'divergence': for cross-entropy the two are the same matrix."
        )

    def times(direction: Tensor) -> Tensor:
        if not gradient.requires_grad:
            return torch.zeros_like(blocks, dtype=torch.float64)
        (product,) = torch.autograd.grad(
            _blocks(gradient, replica), outputs, direction, retain_graph=True, materialize_grads=True
        )
        return _blocks(product, replica).double()

    _check_separable(times, blocks)
    rows = []
    for index in range(size):
        unit = torch.zeros_like(blocks)
        unit[..., index] = 1
        rows.append(times(unit))
    return torch.stack(rows, -1) * n


def is_one_position(outputs: Tensor) -> bool:
    """Whether the outputs of a sample are few enough for one dense Λ."""
    return outputs[:1].numel() <= MAX_DENSE


def _blocks(tensor: Tensor, replica: Replica) -> Tensor:
    divergence = replica.divergence
    if is_one_position(tensor) or isinstance(divergence, JointDivergence):
        return tensor.reshape(len(tensor), 1, -1)
    return by_position(tensor, divergence)


def _check_separable(times: Any, blocks: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    half = torch.arange(blocks.shape[0] * blocks.shape[1]).reshape(*blocks.shape[:2], 1) % 2 == 0
    direction = torch.randn(blocks.shape, generator=generator).to(blocks) * half.to(blocks.device)
    product = times(direction).cpu()
    outside = float((product * ~half).abs().max())
    if outside > 1e-5 * float(product.abs().max()):
        raise TaskError(
            "the task's loss couples samples, or positions of a sample: its second derivative is not block "
            "diagonal, so per-sample gradients do not give its trace. Set sensitivity.trace_loss to "
            "'divergence', or sensitivity.estimator to 'hutchinson'."
        )


def _loss_of_outputs(replica: Replica, batch: Batch, user: str) -> tuple[Tensor, Tensor]:
    if replica.loss is None:
        raise TaskError(f"{user} the Task has no loss. Give Task(loss=...), or take another setting.")
    with frozen_eval(replica.model), torch.no_grad():
        outputs = run_in_microbatches(
            lambda part: replica.forward(replica.model, part), batch, replica.microbatches("forward")
        )
    judged = replica.divergence.judged(outputs)
    leaf = flat_rows(judged).detach().clone().requires_grad_()
    leaves = _split(leaf, judged)
    others = [
        t.requires_grad_()
        for _, t in tensors_of(outputs)
        if id(t) not in leaves and t.is_floating_point() and t.is_leaf
    ]
    value = replica.loss(_replaced(outputs, leaves), batch)
    if value.numel() != 1:
        raise TaskError(f"the task's loss has shape {tuple(value.shape)}; it must be a scalar.")
    gradients: tuple[Tensor | None, ...] = (None,)
    if value.requires_grad:
        gradients = torch.autograd.grad(value, [leaf, *others], retain_graph=True, allow_unused=True)
    if gradients[0] is None or any(g is not None and bool(g.any()) for g in gradients[1:]):
        shapes = ", ".join(str(tuple(tensor.shape)) for _, tensor in tensors_of(judged))
        raise TaskError(
            f"the task's loss does not depend on the model's judged output of shape {shapes} alone. Give "
            f"Task(loss=...) a function of what is judged (see objective.output_weights), or set "
            f"sensitivity.trace_loss to 'divergence'."
        )
    return leaf, value


def _split(leaf: Tensor, judged: Judged) -> dict[int, Tensor]:
    """Identity of each judged tensor → its part of the leaf."""
    if isinstance(judged, Tensor):
        return {id(judged): leaf}
    parts = torch.split(leaf, [tensor[0].numel() for tensor in judged], 1)
    return {id(tensor): part.reshape(tensor.shape) for tensor, part in zip(judged, parts, strict=True)}


def _replaced(outputs: Any, leaves: Mapping[int, Tensor]) -> Any:
    """The same outputs with the judged tensors replaced."""
    if isinstance(outputs, Tensor):
        return leaves.get(id(outputs), outputs)
    if isinstance(outputs, tuple | list):
        values = [_replaced(value, leaves) for value in outputs]
        return type(outputs)(*values) if hasattr(outputs, "_fields") else type(outputs)(values)
    if isinstance(outputs, Mapping):
        changed: Any = copy.copy(outputs)
        for name, value in outputs.items():
            changed[name] = _replaced(value, leaves)
        return changed
    if dataclasses.is_dataclass(outputs) or hasattr(outputs, "logits"):
        changed = copy.copy(outputs)
        for name, value in vars(outputs).items():
            # Past a frozen dataclass's own setter: the copy is not yet anyone's.
            object.__setattr__(changed, name, _replaced(value, leaves))
        return changed
    return outputs
