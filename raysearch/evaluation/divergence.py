"""How far a quantized model's output is from the float model's: the label-free objective."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Divergence:
    """Divergence D of outputs z from float outputs z⁰, per sample.

    - "kl": D = KL(softmax(z⁰) ‖ softmax(z)) along `class_dim`, averaged over the other positions of a
      sample. Its Hessian in z at z⁰ is Λ = diag(p) − ppᵀ, p = softmax(z⁰).
    - "mse": D = ½·mean((z − z⁰)²) over all outputs of a sample; Λ = I / (number of outputs).

    Dimension 0 counts samples.

    Attributes:
        kind: "kl" for logits, "mse" for anything else (regression, embeddings, dense maps).
        class_dim: dimension of the classes, for "kl".
    """

    kind: Literal["kl", "mse"] = "kl"
    class_dim: int = -1

    def per_sample(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """D for each sample, shape [N], float64; differentiable in `outputs`."""
        z, ref = outputs.double(), reference.double()
        if self.kind == "mse":
            return (z - ref).square().reshape(z.shape[0], -1).mean(1) / 2
        log_p = ref.log_softmax(self.class_dim)
        terms = (log_p.exp() * (log_p - z.log_softmax(self.class_dim))).sum(self.class_dim)
        mean: Tensor = terms.reshape(z.shape[0], -1).mean(1)
        return mean

    def weighted(self, delta: Tensor, reference: Tensor) -> Tensor:
        """Λ^½ δ, flattened per sample, shape [N, outputs], float64.

        The inner product of two such rows is δ_qᵀ Λ δ_r, since δᵀ(diag(p) − ppᵀ)δ = Σ p (δ − pᵀδ)².
        """
        d, ref = delta.double(), reference.double()
        if self.kind == "mse":
            every: Tensor = d.reshape(d.shape[0], -1)
            return every / math.sqrt(every.shape[1])
        p = ref.softmax(self.class_dim)
        rows = p.sqrt() * (d - (p * d).sum(self.class_dim, keepdim=True))
        flat = rows.reshape(d.shape[0], -1)
        positions = flat.shape[1] // reference.shape[self.class_dim]
        return flat / math.sqrt(positions)

    def agreement(self, outputs: Tensor, reference: Tensor) -> float:
        """Share of positions with the same argmax along `class_dim`; 1 for "mse"."""
        if self.kind == "mse":
            return 1.0
        same = outputs.argmax(self.class_dim) == reference.argmax(self.class_dim)
        return float(same.double().mean())


def check_outputs(outputs: Tensor, divergence: Divergence) -> str:
    """Why a divergence does not suit an output; "" when it does."""
    if divergence.kind == "mse":
        return ""
    shape, dim = tuple(outputs.shape), divergence.class_dim
    if outputs.ndim < 2 or not -outputs.ndim <= dim < outputs.ndim:
        return f"outputs of shape {shape} have no class dimension {dim}"
    if dim in (0, -outputs.ndim):
        return f"dimension {dim} of outputs of shape {shape} counts samples, not classes"
    if shape[dim] < 2:
        return f"dimension {dim} of outputs of shape {shape} has one class"
    if torch.isnan(outputs).any():
        return "outputs hold NaN"
    return ""
