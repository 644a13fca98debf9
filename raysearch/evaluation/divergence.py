"""How far a quantized model's output is from the float model's: the label-free objective."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from raysearch.errors import DataError
from raysearch.evaluation.forward import output_tensor
from raysearch.evaluation.outputs import Judged
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

    Attributes:
        kind: "kl" for logits, "cosine" for embeddings that are compared by their angle, "mse" or "nmse" for
            anything else (regression, dense maps).
        class_dim: dimension of the classes for "kl", of the vectors for "cosine".
        variance: σ² of "nmse"; one number for the whole run, so that no value depends on its batch.
    """

    kind: DivergenceKind = "kl"
    class_dim: int = -1
    variance: float | None = None

    def fitted(self, reference: Tensor) -> Divergence:
        """With σ² of these float outputs: the mean over outputs of the variance over samples.

        Kinds other than "nmse" need nothing and are returned as they are.

        Raises:
            DataError: there are fewer than two samples, or the outputs do not vary.
        """
        if self.kind != "nmse":
            return self
        flat = reference.double().reshape(reference.shape[0], -1)
        variance = float(flat.var(0, correction=1).mean()) if len(flat) > 1 else 0.0
        if not 0 < variance < math.inf:
            raise DataError(
                f"objective.divergence 'nmse' divides by the variance of the float outputs, which is "
                f"{variance} over the {len(flat)} samples of the first calibration shard; it needs two "
                f"samples or more whose outputs differ. Raise calibration.shard_size, or use 'mse'."
            )
        return replace(self, variance=variance)

    def judged(self, outputs: Any) -> Judged:
        """The tensor of what a model returned that is judged: its logits, or the first one.

        Raises:
            TaskError: there is none.
        """
        return output_tensor(outputs)

    def per_sample(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """D for each sample, shape [N], float64; differentiable in `outputs`.

        Of logits over a vocabulary, without a gradient, it is computed in float32 and summed in float64, see
        `evaluation.vocabulary.positions`.
        """
        if self.is_by_position(outputs, reference):
            return position_divergences(outputs, reference).mean(1)
        z, ref = outputs.double(), reference.double()
        if self.is_squared:
            return (z - ref).square().reshape(z.shape[0], -1).mean(1) / (2 * self.unit)
        if self.kind == "cosine":
            # 1 − cos as half a squared distance: exactly 0 for equal vectors, and never below.
            terms = (self._direction(z) - self._direction(ref)).square().sum(self.class_dim) / 2
        else:
            log_p = ref.log_softmax(self.class_dim)
            terms = (log_p.exp() * (log_p - z.log_softmax(self.class_dim))).sum(self.class_dim)
        mean: Tensor = terms.reshape(z.shape[0], -1).mean(1)
        return mean

    def weighted(self, delta: Tensor, reference: Tensor) -> Tensor:
        """Λ^½ δ, flattened per sample, shape [N, outputs], float64.

        The inner product of two such rows is δ_qᵀ Λ δ_r: for "kl" since
        δᵀ(diag(p) − ppᵀ)δ = Σ p (δ − pᵀδ)², for "cosine" since I − uuᵀ is a projection.
        """
        d, ref = delta.double(), reference.double()
        if self.is_squared:
            every: Tensor = d.reshape(d.shape[0], -1)
            return every / math.sqrt(every.shape[1] * self.unit)
        if self.kind == "cosine":
            u = self._direction(ref)
            length: Tensor = ref.norm(dim=self.class_dim, keepdim=True)
            rows = (d - u * (u * d).sum(self.class_dim, keepdim=True)) / length
        else:
            p = ref.softmax(self.class_dim)
            rows = p.sqrt() * (d - (p * d).sum(self.class_dim, keepdim=True))
        flat = rows.reshape(d.shape[0], -1)
        result: Tensor = flat / math.sqrt(flat.shape[1] // reference.shape[self.class_dim])
        return result

    def agreement(self, outputs: Tensor, reference: Tensor) -> float:
        """Share of positions with the same argmax along `class_dim`; 1 for kinds that know no classes."""
        if self.kind != "kl":
            return 1.0
        same = outputs.argmax(self.class_dim) == reference.argmax(self.class_dim)
        return float(same.double().mean())

    def is_by_position(self, outputs: Tensor, reference: Tensor) -> bool:
        """Whether outputs are so large that they are judged a few positions at a time, in float32."""
        return self.kind == "kl" and suits_positions(outputs, reference, self.class_dim)

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

    def _direction(self, vectors: Tensor) -> Tensor:
        length: Tensor = vectors.norm(dim=self.class_dim, keepdim=True)
        return vectors / length


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
