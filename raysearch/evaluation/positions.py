"""Positions of a sample that count, such as the tokens of a sentence that are no padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raysearch.errors import DataError
from raysearch.evaluation.batches import Batch

Positions = Callable[[Batch], Tensor]
"""batch → which positions count, bool [N, …]: true where one does."""


class Masked(NamedTuple):
    """A judged output of which some positions do not count.

    Attributes:
        values: [N, …]; 1 at positions that do not count, so that they are equal in all models and no gradient
            comes from them.
        counts: bool, of the shape of the first dimensions of `values`.
    """

    values: Tensor
    counts: Tensor


def masked(
    values: Tensor, batch: Batch, positions: Positions | None, class_dim: int | None = None
) -> Tensor | Masked:
    """An output with the positions that count; as it is where it has no such positions.

    Args:
        values: an output of the model on the batch.
        batch: what it was run on.
        positions: says which count; None: all.
        class_dim: the dimension that is no position, though it may be as long; None: there is none.

    Raises:
        DataError: see `counted`.
    """
    if positions is None:
        return values
    counts = counted(batch, positions).to(values.device)
    if values.shape[: counts.ndim] != counts.shape:
        return values
    if class_dim is not None and class_dim % values.ndim < counts.ndim:
        return values
    return Masked(values.masked_fill(~_spread(counts, values), 1.0), counts)


def counted(batch: Batch, positions: Positions) -> Tensor:
    """Which positions of a batch count, bool [N, …].

    Raises:
        DataError: that is no tensor of truth values, or a sample has no position that counts.
    """
    counts: Any = positions(batch)
    if not isinstance(counts, Tensor) or counts.dtype != torch.bool or counts.ndim < 2:
        got = f"a {type(counts).__name__}"
        if isinstance(counts, Tensor):
            got = f"a tensor of {counts.dtype} with the shape {tuple(counts.shape)}"
        raise DataError(
            f"Task(positions=...) gives {got}; it must give a bool tensor [samples, positions], true where a "
            f"position counts."
        )
    is_empty = ~counts.flatten(1).any(1)
    if bool(is_empty.any()):
        raise DataError(
            f"sample {int(is_empty.nonzero()[0])} of a batch has no position that counts (Task(positions=...)"
            f"); leave such samples out."
        )
    return counts


def values_of(judged: Tensor | Masked) -> Tensor:
    """The values, of those that do not count too."""
    return judged.values if isinstance(judged, Masked) else judged


def shares(judged: Tensor | Masked, class_dim: int | None) -> Tensor | None:
    """What each position counts of its sample, float64 [N, P], each row's sum 1; None where all count alike.

    Args:
        judged: an output.
        class_dim: the dimension that is no position; None: every value is one.
    """
    if not isinstance(judged, Masked):
        return None
    spread = _spread(judged.counts, judged.values).expand(judged.values.shape)
    if class_dim is not None:
        spread = spread.select(class_dim, 0)
    flat = spread.reshape(len(spread), -1).double()
    result: Tensor = flat / flat.sum(1, keepdim=True)
    return result


def _spread(counts: Tensor, values: Tensor) -> Tensor:
    return counts.reshape(*counts.shape, *(1,) * (values.ndim - counts.ndim))
