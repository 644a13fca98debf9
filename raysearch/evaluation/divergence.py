"""How far a quantized model's output is from the float model's: the label-free objective."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from raysearch.errors import DataError
from raysearch.evaluation.batches import Batch
from raysearch.evaluation.forward import output_tensor
from raysearch.evaluation.outputs import Judged
from raysearch.evaluation.positions import Masked, Positions, masked, shares, values_of
from raysearch.evaluation.vocabulary.positions import position_divergences, suits_positions

DivergenceKind = Literal["kl", "mse", "nmse", "cosine"]


@dataclass(frozen=True)
class Divergence:
    """Divergence D of outputs z from float outputs z⁰, per sample.

    - "kl": D = KL(softmax(z⁰) ‖ softmax(z)) along `class_dim`, averaged over the other positions of a
      sample. Its Hessian in z at z⁰ is Λ = diag(p) − ppᵀ, p = softmax(z⁰).
    - "mse": D = ½·mean((z − z⁰)²) over all outputs of a sample; Λ = I / (number of outputs).
    - "nmse": the same over σ², the variance of the float outputs (`fitted`); Λ = I / (σ²·number of outputs).
    - "cosine": D = 1 − cos(z, z⁰) along `class_dim`, averaged over the other positions of a sample;
      Λ = (I − uuᵀ)/‖z⁰‖², u = z⁰/‖z⁰‖.

    Dimension 0 counts samples. "kl", "nmse" and "cosine" have no unit, so values of different models compare.
    Of positions that do not count nothing is judged, and means are over the others.

    Attributes:
        kind: "kl" for logits, "cosine" for embeddings that are compared by their angle, "mse" or "nmse" for
            anything else (regression, dense maps).
        class_dim: dimension of the classes for "kl", of the vectors for "cosine".
        variance: σ² of "nmse"; one number for the whole run, so that no value depends on its batch.
        positions: which positions of a batch count; None: all.
    """

    kind: DivergenceKind = "kl"
    class_dim: int = -1
    variance: float | None = None
    positions: Positions | None = None

    def fitted(self, reference: Tensor | Masked) -> Divergence:
        """With σ² of these float outputs: the mean over outputs of the variance over samples.

        Kinds other than "nmse" need nothing and are returned as they are.

        Raises:
            DataError: there are fewer than two samples, or the outputs do not vary.
        """
        if self.kind != "nmse":
            return self
        values = values_of(reference).double()
        flat = values.reshape(values.shape[0], -1)
        share = shares(reference, None)
        variance = 0.0
        if share is not None:
            variance = _variance(flat, share > 0)
        elif len(flat) > 1:
            variance = float(flat.var(0, correction=1).mean())
        if not 0 < variance < math.inf:
            raise DataError(
                f"objective.divergence 'nmse' divides by the variance of the float outputs, which is "
                f"{variance} over the {len(flat)} samples of the first calibration shard; it needs two "
                f"samples or more whose outputs differ. Raise calibration.shard_size, or use 'mse'."
            )
        return replace(self, variance=variance)

    def judged(self, outputs: Any, batch: Batch | None = None) -> Judged:
        """What is judged of what a model returned: its logits, or the first tensor.

        Args:
            outputs: the model's.
            batch: what they are of; None: every position counts.

        Raises:
            TaskError: there is none.
            DataError: see `masked`.
        """
        values = output_tensor(outputs)
        return values if batch is None else masked(values, batch, self.positions, self._class_dim)

    def per_sample(self, outputs: Tensor | Masked, reference: Tensor | Masked) -> Tensor:
        """D for each sample, shape [N], float64; differentiable in `outputs`.

        Of logits over a vocabulary, without a gradient, it is computed in float32 and summed in float64, see
        `evaluation.vocabulary.positions`.
        """
        share = shares(reference, self._class_dim)
        if self.is_by_position(outputs, reference):
            return _mean(position_divergences(values_of(outputs), values_of(reference)), share)
        z, ref = values_of(outputs).double(), values_of(reference).double()
        if self.is_squared:
            return _mean((z - ref).square().reshape(z.shape[0], -1), share) / (2 * self.unit)
        if self.kind == "cosine":
            # 1 − cos as half a squared distance: exactly 0 for equal vectors, and never below.
            terms = (self._direction(z) - self._direction(ref)).square().sum(self.class_dim) / 2
        else:
            log_p = ref.log_softmax(self.class_dim)
            terms = (log_p.exp() * (log_p - z.log_softmax(self.class_dim))).sum(self.class_dim)
        return _mean(terms.reshape(z.shape[0], -1), share)

    def weighted(self, delta: Tensor | Masked, reference: Tensor | Masked) -> Tensor:
        """Λ^½ δ, flattened per sample, shape [N, outputs], float64.

        The inner product of two such rows is δ_qᵀ Λ δ_r: for "kl" since
        δᵀ(diag(p) − ppᵀ)δ = Σ p (δ − pᵀδ)², for "cosine" since I − uuᵀ is a projection.
        """
        d, ref = values_of(delta).double(), values_of(reference).double()
        share = shares(reference, self._class_dim)
        if self.is_squared:
            every: Tensor = d.reshape(d.shape[0], -1)
            if share is not None:
                return every * (share / self.unit).sqrt()
            return every / math.sqrt(every.shape[1] * self.unit)
        if self.kind == "cosine":
            u = self._direction(ref)
            length: Tensor = ref.norm(dim=self.class_dim, keepdim=True)
            rows = (d - u * (u * d).sum(self.class_dim, keepdim=True)) / length
        else:
            p = ref.softmax(self.class_dim)
            rows = p.sqrt() * (d - (p * d).sum(self.class_dim, keepdim=True))
        if share is not None:
            # Broadcast over the classes, wherever they are.
            roots = share.sqrt().reshape(rows.select(self.class_dim, 0).shape).unsqueeze(self.class_dim)
            return (rows * roots).reshape(d.shape[0], -1)
        flat = rows.reshape(d.shape[0], -1)
        result: Tensor = flat / math.sqrt(flat.shape[1] // ref.shape[self.class_dim])
        return result

    def agreement(self, outputs: Tensor | Masked, reference: Tensor | Masked) -> float | None:
        """Share of positions with the same argmax along `class_dim`; None for kinds that know no classes.

        Of several samples with different numbers of positions that count, the mean over samples.
        """
        if self.kind != "kl":
            return None
        same = values_of(outputs).argmax(self.class_dim) == values_of(reference).argmax(self.class_dim)
        share = shares(reference, self.class_dim)
        if share is not None:
            return float((same.reshape(share.shape) * share).sum(1).mean())
        return float(same.double().mean())

    def is_by_position(self, outputs: Tensor | Masked, reference: Tensor | Masked) -> bool:
        """Whether outputs are so large that they are judged a few positions at a time, in float32."""
        if self.kind != "kl":
            return False
        return suits_positions(values_of(outputs), values_of(reference), self.class_dim)

    @property
    def is_squared(self) -> bool:
        """Whether the divergence is a squared error, which knows no classes."""
        return self.kind in ("mse", "nmse")

    @property
    def unit(self) -> float:
        """What squared errors are divided by: σ² for "nmse", else 1.

        Raises:
            DataError: `fitted` has not been called.
        """
        if self.kind != "nmse":
            return 1.0
        if self.variance is None:
            raise DataError("a Divergence of kind 'nmse' has no variance yet; make it by `fitted`.")
        return self.variance

    @property
    def _class_dim(self) -> int | None:
        """The dimension that is no position; None where every value is one."""
        return None if self.is_squared else self.class_dim

    def _direction(self, vectors: Tensor) -> Tensor:
        length: Tensor = vectors.norm(dim=self.class_dim, keepdim=True)
        return vectors / length


def _mean(terms: Tensor, share: Tensor | None) -> Tensor:
    """The mean of each row of [N, P], or what its positions count."""
    mean: Tensor = terms.mean(1) if share is None else (terms * share).sum(1)
    return mean


def _variance(flat: Tensor, counts: Tensor) -> float:
    """The mean over columns of the variance over those rows that count, where two do."""
    number = counts.sum(0)
    mean = (flat * counts).sum(0) / number.clamp(min=1)
    squares = ((flat - mean).square() * counts).sum(0)
    is_known = number > 1
    if not bool(is_known.any()):
        return 0.0
    return float((squares[is_known] / (number[is_known] - 1)).mean())


def check_outputs(outputs: Tensor, divergence: Divergence) -> str:
    """Why a divergence does not suit an output; "" when it does."""
    if divergence.is_squared:
        return ""
    shape, dim = tuple(outputs.shape), divergence.class_dim
    what = "classes" if divergence.kind == "kl" else "vectors"
    if outputs.ndim < 2 or not -outputs.ndim <= dim < outputs.ndim:
        return f"outputs of shape {shape} have no class dimension {dim}"
    if dim in (0, -outputs.ndim):
        return f"dimension {dim} of outputs of shape {shape} counts samples, not {what}"
    if shape[dim] < 2:
        return f"dimension {dim} of outputs of shape {shape} has one class"
    if torch.isnan(outputs).any():
        return "outputs hold NaN"
    if divergence.kind == "cosine" and not bool(outputs.double().norm(dim=dim).all()):
        return f"outputs hold a vector of length 0 along dimension {dim}, which has no direction"
    return ""
