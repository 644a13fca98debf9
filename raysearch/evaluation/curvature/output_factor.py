"""Factors F of the output Hessian, Λ = F Fᵀ, per sample and position.

Λ is block diagonal over the positions of a sample. Its leading directions are known from orthonormal w in the
factor's own space: Λ − Σ (F w)(F w)ᵀ has the factor F (I − W Wᵀ), whatever w; so an inexact eigenvector costs
variance, never bias.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from raysearch.errors import TaskError
from raysearch.evaluation.divergence import Divergence
from raysearch.evaluation.positions import Masked, shares, values_of

MAX_DENSE = 64
"""Most classes whose Λ is decomposed."""
MAX_DENSE_POSITIONS = 16
"""Most positions of a sample whose Λ are decomposed one by one."""
CANDIDATES = 16
"""Most probable classes that are told apart in the leading directions of a softmax; the others are one."""
NEGATIVE_TOLERANCE = 1e-4
"""Largest negative eigenvalue, over the largest magnitude, that counts as rounding of a 0."""


class OutputFactor(ABC):
    """F for n samples of P positions and C outputs.

    Attributes:
        shape: (n, P, R), of what `apply` takes; R is the number of columns of F.
        rank: rank of F at most.
        num_columns: the first columns of F that are not 0.
    """

    shape: tuple[int, int, int]
    rank: int
    num_columns: int

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """F x, [n, P, R] → [n, P, C]."""

    @abstractmethod
    def leading(self, count: int) -> Tensor:
        """Orthonormal W of about the largest ‖F w‖, [n, P, R, count]."""

    @abstractmethod
    def trace(self) -> Tensor:
        """Tr Λ of each sample, [n]."""


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of symmetric matrices; computed on the CPU.

    The sign of an eigenvector is the library's choice, and random draws along it depend on that. So that a
    GPU draws what the CPU draws, LAPACK chooses for both. The matrices are small: of one position's classes.
    """
    values, vectors = torch.linalg.eigh(matrix.cpu())
    return values.to(matrix.device), vectors.to(matrix.device)


class EigenFactor(OutputFactor):
    """F = U √λ from the eigendecomposition of Λ, largest first.

    Args:
        matrix: Λ, [n, P, C, C], float64.

    Raises:
        TaskError: Λ is indefinite.
    """

    def __init__(self, matrix: Tensor) -> None:
        values, vectors = eigh((matrix + matrix.mT) / 2)
        least, most = float(values.min()), float(values.abs().max())
        if least < -NEGATIVE_TOLERANCE * most:
            raise TaskError(
                f"the task's loss is not convex in the model's output: its second derivative has the "
                f"eigenvalue {least:.3g} beside {most:.3g}, so there is no Gauss-Newton trace. Set "
                f"sensitivity.trace_loss to 'divergence', or sensitivity.estimator to 'hutchinson'."
            )
        self._roots = values.flip(-1).clamp(min=0).sqrt()
        self._vectors = vectors.flip(-1)
        n, positions, outputs = self._roots.shape
        self.shape = (n, positions, outputs)
        roots = self._roots.amax((0, 1))
        self.rank = self.num_columns = int((roots > 1e-7 * roots.max()).sum())

    def apply(self, x: Tensor) -> Tensor:
        """U (√λ x)."""
        applied: Tensor = (self._vectors @ (self._roots * x)[..., None])[..., 0]
        return applied

    def leading(self, count: int) -> Tensor:
        """The first eigenvectors, which in the factor's space are unit vectors."""
        size = self.shape[-1]
        unit = torch.eye(size, count, dtype=torch.float64, device=self._roots.device)
        return unit.expand(*self.shape, count)

    def trace(self) -> Tensor:
        """Σ λ."""
        total: Tensor = self._roots.square().sum((1, 2))
        return total


class SoftmaxFactor(OutputFactor):
    """F = √s (diag(√p) − p √pᵀ), so that F Fᵀ = s (diag(p) − p pᵀ); without decomposition.

    Args:
        p: probabilities [n, P, C], float64.
        scale: s; [n, P] where positions differ in it.
    """

    def __init__(self, p: Tensor, scale: float | Tensor) -> None:
        self._p = p
        self._root = p.sqrt()
        self._scale = scale
        n, positions, outputs = p.shape
        self.shape = (n, positions, outputs)
        # F√p = 0: moving all logits alike changes no probability.
        self.rank = outputs - 1
        self.num_columns = outputs

    def apply(self, x: Tensor) -> Tensor:
        """√s (√p x − p ⟨√p, x⟩)."""
        applied: Tensor = self._root * x
        # In place: with a vocabulary each tensor of this shape outweighs the rest of the model.
        applied.addcmul_(self._p, applied.sum(-1, keepdim=True), value=-1)
        return applied.mul_(_root(self._scale))

    def leading(self, count: int) -> Tensor:
        """Ritz vectors of Fᵀ F over the most probable classes and √p of all others together.

        The eigenvectors are √p_i / (p_i − λ), so among classes of p_i ≪ λ in proportion to √p_i: what is
        missed is of the order of the first class that is not told apart. Work: a few passes over p.

        Source: Golub 1973, Some modified matrix eigenvalue problems (diagonal plus rank one).
        """
        top, places = self._p.topk(min(max(count, CANDIDATES), self.shape[-1]), dim=-1)
        tail = self._p.scatter(-1, places, 0.0)
        share = tail.sum(-1, keepdim=True)
        square = tail.square().sum(-1, keepdim=True)
        mean = (square / share).nan_to_num(0.0)
        # The most probable classes one by one, then all others as a single direction.
        values = torch.cat([top, mean], -1)
        roots = torch.cat([top, share], -1).sqrt()
        total = top.square().sum(-1, keepdim=True) + square
        cross = roots[..., :, None] * (values * roots)[..., None, :]
        ritz = torch.diag_embed(values) - cross - cross.mT
        ritz += total[..., None] * roots[..., :, None] * roots[..., None, :]
        # Where no class is left, the direction of the others is none.
        ritz[..., -1, -1].masked_fill_(share[..., 0] == 0, -1.0)
        _, vectors = eigh(ritz)
        vectors = vectors.flip(-1)[..., :count]
        scale = (vectors[..., -1:, :] / share.sqrt()[..., None]).nan_to_num(0.0, 0.0, 0.0)
        basis: Tensor = tail.sqrt_()[..., None] * scale
        places = places[..., None].expand(*places.shape, count)
        return basis.scatter_(2, places, vectors[..., :-1, :])

    def trace(self) -> Tensor:
        """S Σ (1 − ‖p‖²) over the positions."""
        purities = self._p.square().sum(-1)
        if isinstance(self._scale, Tensor):
            return (self._scale * (1 - purities)).sum(1)
        total: Tensor = self._scale * (1 - purities).sum(1)
        return total


class SphereFactor(OutputFactor):
    """F = √s (I − uuᵀ)/‖z‖, u = z/‖z‖, so that F Fᵀ = s (I − uuᵀ)/‖z‖²; all its eigenvalues are equal.

    Args:
        vectors: z [n, P, C], float64.
        scale: s; [n, P] where positions differ in it.
    """

    def __init__(self, vectors: Tensor, scale: float | Tensor) -> None:
        length = vectors.norm(dim=-1, keepdim=True)
        self._unit = vectors / length
        self._weight = _root(scale) / length
        n, positions, outputs = vectors.shape
        self.shape = (n, positions, outputs)
        # Fu = 0: the length of a vector changes no angle.
        self.rank = outputs - 1
        self.num_columns = outputs

    def apply(self, x: Tensor) -> Tensor:
        """√s (x − u ⟨u, x⟩)/‖z‖."""
        applied: Tensor = self._weight * (x - self._unit * (self._unit * x).sum(-1, keepdim=True))
        return applied

    def leading(self, count: int) -> Tensor:
        """The axes that are nearest to right angles with u."""
        nearest = self._unit.abs().topk(count, dim=-1, largest=False).indices
        basis = torch.zeros(*self.shape, count, dtype=self._unit.dtype, device=self._unit.device)
        return basis.scatter_(2, nearest[:, :, None, :], 1.0)

    def trace(self) -> Tensor:
        """S Σ (C − 1)/‖z‖² over the positions."""
        total: Tensor = (self.shape[-1] - 1) * self._weight.square().sum((1, 2))
        return total


def divergence_factor(outputs: Tensor | Masked, divergence: Divergence) -> OutputFactor:
    """F of the divergence's Hessian at the float outputs.

    In place of 1/P, or 1/D, stands what a position counts, where not all of them count.

    "kl": Λ = (diag(p) − ppᵀ)/P at each of the P positions; decomposed up to 64 classes and 16 positions.
    "mse", "nmse": Λ = I/D or I/(σ²D), D outputs a sample, each a position of its own.
    "cosine": Λ = (I − uuᵀ)/(‖z⁰‖² P) at each position; decomposed as "kl" is.

    Args:
        outputs: z⁰, [n, …].
        divergence: what is differentiated.
    """
    grouped = by_position(values_of(outputs), divergence).double()
    n, positions, classes = grouped.shape
    share = shares(outputs, None if divergence.is_squared else divergence.class_dim)
    if divergence.is_squared:
        curvature = torch.full((n, positions), 1 / (positions * divergence.unit), dtype=torch.float64)
        if share is not None:
            curvature = share / divergence.unit
        return EigenFactor(curvature.to(grouped)[..., None, None])
    is_small = classes <= MAX_DENSE and positions <= MAX_DENSE_POSITIONS
    if divergence.kind == "cosine":
        length = grouped.norm(dim=-1, keepdim=True)
        if not is_small:
            return SphereFactor(grouped, 1 / positions if share is None else share)
        u = grouped / length
        eye = torch.eye(classes, dtype=torch.float64, device=grouped.device)
        projection = eye - u[..., :, None] * u[..., None, :]
        if share is not None:
            return EigenFactor(projection * share[..., None, None] / length[..., None] ** 2)
        return EigenFactor(projection / (positions * length[..., None] ** 2))
    p = grouped.softmax(-1)
    if is_small:
        covariance = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
        return EigenFactor(covariance / positions if share is None else covariance * share[..., None, None])
    return SoftmaxFactor(p, 1 / positions if share is None else share)


def _root(scale: float | Tensor) -> float | Tensor:
    return scale.sqrt()[..., None] if isinstance(scale, Tensor) else scale**0.5


def by_position(outputs: Tensor, divergence: Divergence) -> Tensor:
    """Outputs as [n, P, C]: the classes last, or every output a position for squared errors."""
    if divergence.is_squared:
        return outputs.reshape(len(outputs), -1, 1)
    classes = outputs.shape[divergence.class_dim]
    return outputs.movedim(divergence.class_dim, -1).reshape(len(outputs), -1, classes)


def as_outputs(grouped: Tensor, outputs: Tensor, divergence: Divergence) -> Tensor:
    """The inverse of `by_position`, in the shape and type of `outputs`.

    Args:
        grouped: [n, P, C].
        outputs: of the shape and type to return, [n, …].
        divergence: says which dimension holds the classes, and whether there are any.
    """
    if divergence.is_squared:
        return grouped.reshape(outputs.shape).to(outputs)
    moved = outputs.movedim(divergence.class_dim, -1)
    return grouped.reshape(moved.shape).movedim(-1, divergence.class_dim).to(outputs)


def random_signs(shape: tuple[int, int, int], extra: int, generator: torch.Generator) -> Tensor:
    """Random ±1, [n, P, R + extra]: sample after sample from one CPU generator, whatever the chunk.

    Args:
        shape: (n, P, R): samples, positions, directions at a position.
        extra: further signs a position.
        generator: on the CPU; moved on by the draw.
    """
    n, positions, size = shape
    drawn = [
        torch.randint(0, 2, (positions, size + extra), generator=generator, dtype=torch.int8)
        for _ in range(n)
    ]
    return torch.stack(drawn) * 2 - 1
