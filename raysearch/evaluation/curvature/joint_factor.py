"""The factor of the output Hessian where several outputs are judged: one block an output."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raysearch.evaluation import Judged, Objective
from raysearch.evaluation.curvature.output_factor import OutputFactor, as_outputs, divergence_factor
from raysearch.evaluation.joint_divergence import JointDivergence
from raysearch.evaluation.positions import Masked, values_of


class JointFactor(OutputFactor):
    """F = diag(√w_i F_i): the positions of the first output, then those of the next; directions padded by 0.

    Args:
        outputs: z⁰ of every output, each [n, …].
        divergence: what is differentiated.
    """

    def __init__(self, outputs: tuple[Tensor | Masked, ...], divergence: JointDivergence) -> None:
        self._roots = [math.sqrt(part.weight) for part in divergence.parts]
        self._factors = [
            divergence_factor(z, part.divergence) for part, z in zip(divergence.parts, outputs, strict=True)
        ]
        self._cuts = _cuts([factor.shape[1] for factor in self._factors])
        size = max(factor.shape[2] for factor in self._factors)
        self.shape = (len(values_of(outputs[0])), self._cuts[-1].stop, size)
        self.rank = max(factor.rank for factor in self._factors)
        self.num_columns = max(factor.num_columns for factor in self._factors)

    def apply(self, x: Tensor) -> Tensor:
        """√w F x of each output on its own positions."""
        applied = torch.zeros_like(x)
        for root, factor, cut in zip(self._roots, self._factors, self._cuts, strict=True):
            size = factor.shape[2]
            applied[:, cut, :size] = root * factor.apply(x[:, cut, :size])
        return applied

    def leading(self, count: int) -> Tensor:
        """Those of each output on its own positions; 0 where it has fewer directions."""
        first = self._factors[0].trace()
        basis = torch.zeros(*self.shape, count, dtype=first.dtype, device=first.device)
        for factor, cut in zip(self._factors, self._cuts, strict=True):
            size = factor.shape[2]
            own = min(count, size)
            basis[:, cut, :size, :own] = factor.leading(own)
        return basis

    def trace(self) -> Tensor:
        """Σ w Tr Λ of the outputs."""
        traces = [root**2 * factor.trace() for root, factor in zip(self._roots, self._factors, strict=True)]
        return torch.stack(traces).sum(0)


def objective_factor(outputs: Judged, divergence: Objective) -> OutputFactor:
    """F of the objective's Hessian at the float outputs; see `divergence_factor`."""
    if isinstance(divergence, JointDivergence):
        return JointFactor(outputs, divergence)
    return divergence_factor(outputs, divergence)


def as_cotangent(column: Tensor, outputs: Judged, divergence: Objective) -> Tensor:
    """A column of the factor in the shape of `flat_rows` of the outputs.

    Args:
        column: [n, P, C].
        outputs: what is judged.
        divergence: the objective.
    """
    if not isinstance(divergence, JointDivergence):
        return as_outputs(column, values_of(outputs), divergence)
    rows: list[Tensor] = []
    start = 0
    for part, output in zip(divergence.parts, outputs, strict=True):
        z = values_of(output)
        size = 1 if part.divergence.is_squared else z.shape[part.divergence.class_dim]
        positions = z[0].numel() // size
        own = column[:, start : start + positions, :size]
        rows.append(as_outputs(own, z, part.divergence).reshape(len(z), -1))
        start += positions
    return torch.cat(rows, 1)


def _cuts(lengths: list[int]) -> list[slice]:
    cuts: list[slice] = []
    start = 0
    for length in lengths:
        cuts.append(slice(start, start + length))
        start += length
    return cuts
