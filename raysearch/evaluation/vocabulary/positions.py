"""KL over a vocabulary: a few positions at a time, in float32, without cancellation.

At a position with float logits z⁰ and p = softmax(z⁰), let d = z − z⁰ − Σ p (z − z⁰). Then

    KL = log(1 + Σ p (eᵈ − 1 − d))        the row of the quadratic form is  √p · d

Every term of the sum is 0 or more and z − z⁰ is taken first, so float32 loses nothing that the float32
logits had: against float64 the relative error is below 1e-5 where KL > 1e-6, a tenth and less of what
rounding the logits themselves does. Sums over values are pairwise; over positions they are in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

LARGE_OUTPUT = 2**14
"""Values of a sample from which logits are judged in float32."""

SHARD_VALUES = 2**24
"""Logits over a vocabulary that a shard may have: 64 MiB in float32, of which a worker holds three copies."""

_AT_ONCE = {"cpu": 2**17, "cuda": 2**24}
"""Values that are judged in one go, by type of device: on a CPU so few that they stay in its cache."""

_LARGEST_STEP = 60.0
"""The largest d whose eᵈ is left to float32, with p as small as float32 has it."""


@dataclass(frozen=True)
class JudgedPositions:
    """Some positions in a row.

    Attributes:
        first: index of the first, over all samples.
        rows: √p d [positions, classes], float32; overwritten by the next.
        divergences: KL of each position, float64.
    """

    first: int
    rows: Tensor
    divergences: Tensor


def suits_positions(outputs: Tensor, reference: Tensor, class_dim: int) -> bool:
    """Whether outputs are so large that they are judged by `judged_positions`.

    Double precision is kept where a model computes in it, and where a gradient is needed.

    Args:
        outputs: of any model.
        reference: the float model's.
        class_dim: must be the last dimension.
    """
    if outputs.ndim < 2 or class_dim not in (-1, outputs.ndim - 1) or outputs[0].numel() < LARGE_OUTPUT:
        return False
    if outputs.shape != reference.shape or torch.float64 in (outputs.dtype, reference.dtype):
        return False
    return not (torch.is_grad_enabled() and (outputs.requires_grad or reference.requires_grad))


def roots(logits: Tensor) -> Tensor:
    """√softmax of some positions [positions, classes], float32."""
    probabilities = logits.float().softmax(-1)
    # By a pairwise sum: what all logits of a position move by must cancel to the last bit but one.
    probabilities /= probabilities.sum(-1, keepdim=True)
    return probabilities.sqrt_()


def position_divergences(outputs: Tensor, reference: Tensor) -> Tensor:
    """KL at every position, [samples, positions], float64.

    Memory: four float32 values for each of those that are judged in one go.
    """
    classes = outputs.shape[-1]
    z, ref = outputs.reshape(-1, classes), reference.reshape(-1, classes)
    parts = [part.divergences for part in judged_positions(z, ref, lambda lo, hi: roots(ref[lo:hi]))]
    return torch.cat(parts).reshape(len(outputs), -1)


def judged_positions(
    outputs: Tensor, reference: Tensor, roots_of: Callable[[int, int], Tensor]
) -> Iterator[JudgedPositions]:
    """Every position in order, a few at a time.

    Args:
        outputs: logits [positions, classes].
        reference: the float model's.
        roots_of: (first, end) → √p of those positions in float32; a row takes the sign that a root has.
    """
    count, classes = outputs.shape
    step = max(1, _AT_ONCE.get(outputs.device.type, _AT_ONCE["cuda"]) // classes)
    scratch = [outputs.new_empty((min(step, count), classes), dtype=torch.float32) for _ in range(3)]
    for lo in range(0, count, step):
        hi = min(lo + step, count)
        shift, terms, rows = (part[: hi - lo] for part in scratch)
        z, ref, root = outputs[lo:hi], reference[lo:hi], roots_of(lo, hi)
        torch.sub(z.float(), ref.float(), out=shift)
        torch.mul(root, shift, out=rows).mul_(root)
        shift.sub_(rows.sum(-1, keepdim=True))
        torch.mul(root, shift, out=rows)
        # False for NaN too.
        if bool(shift.amax() <= _LARGEST_STEP):
            torch.expm1(shift, out=terms).sub_(shift).mul_(root).mul_(root)
            divergences = terms.sum(-1).double().log1p()
        else:
            divergences = _in_double(z, ref)
        yield JudgedPositions(lo, rows, divergences)


def _in_double(outputs: Tensor, reference: Tensor) -> Tensor:
    """KL of outputs so far off that float32 has no numbers for their ratio."""
    log_p = reference.double().log_softmax(-1)
    return (log_p.exp() * (log_p - outputs.double().log_softmax(-1))).sum(-1)
