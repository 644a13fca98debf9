"""XNysTrace: the trace of a positive semi-definite block from m products, each used twice.

Let Ω hold m orthonormal columns drawn uniformly, and A⟨Ω⟩ = AΩ(ΩᵀAΩ)⁻¹(AΩ)ᵀ be the Nyström approximation.
Leave one column out: Tr A⟨Ω₋ᵢ⟩ is known, and ωᵢ is uniform on the sphere of the n − m + 1 dimensions that are
left, so tᵢ = Tr A⟨Ω₋ᵢ⟩ + (n − m + 1) ωᵢᵀ(A − A⟨Ω₋ᵢ⟩)ωᵢ has the mean Tr A. The estimate is the mean of the tᵢ;
its variance falls as fast as the spectrum decays, and it is exact where the rank is below m.

Source: Epperly, Tropp and Webber, "XTrace: Making the most of every sample in stochastic trace estimation",
SIAM J. Matrix Anal. Appl. 2024, section 2.3; the formulas of its section 3. An orthonormal Ω takes the place
of its normalised Gaussian one: the law of every tᵢ is the same, and ΩᵀAΩ is better conditioned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from raysearch.config.estimators import PER_SAMPLE
from raysearch.errors import ConfigError
from raysearch.evaluation import ShardView
from raysearch.seeding import derive_seed
from raysearch.sensitivity.estimators.products import Multiply, estimate_blocks, orthonormal
from raysearch.sensitivity.estimators.protocol import TraceRequest


class XNysTrace:
    """A draw is one XNysTrace of m Hessian-vector products a weight; for `loss="divergence"` only.

    Work of a call with P draws: one forward and one gradient with its graph, then P · m products a weight;
    memory 3 · 8 · n · m bytes. A weight of at most m elements takes its n columns instead and is exact.

    Args:
        num_products: m, at least 2.
    """

    name = "xnystrace"
    deterministic = False
    per_sample = name in PER_SAMPLE

    def __init__(self, num_products: int = 16) -> None:
        if num_products < 2:
            raise ConfigError(f"XNysTrace needs at least 2 products a draw, not {num_products}.")
        self.num_products = num_products

    def draw(self, view: ShardView, request: TraceRequest) -> Mapping[str, np.ndarray]:
        """See `TraceEstimator.draw`."""
        if request.loss != "divergence":
            raise ConfigError(
                "the estimator 'xnystrace' is for positive semi-definite blocks, and those of the task's "
                "loss need not be; take 'xtrace', or set sensitivity.trace_loss to 'divergence'."
            )

        def estimate(weight: Tensor, multiply: Multiply, name: str, index: int) -> float:
            seed = derive_seed(request.seed, "xnystrace", name, view.index, index)
            omega = orthonormal(weight.numel(), self.num_products, seed, weight.device)
            return xnystrace(omega, multiply(omega), torch.finfo(weight.dtype).eps)

        return estimate_blocks(view, request, estimate, self.num_products)


def xnystrace(omega: Tensor, y: Tensor, precision: float) -> float:
    """The estimate from Y = AΩ.

    Args:
        omega: Ω, [n, m], orthonormal, m < n or m = n.
        y: AΩ, [n, m], float64; A positive semi-definite up to the rounding of Y.
        precision: the relative rounding error of Y.
    """
    size, m = omega.shape
    norm = float(torch.linalg.matrix_norm(y))
    if norm == 0:
        return 0.0
    if not math.isfinite(norm):
        # No shift would ever make such a matrix definite.
        return math.nan
    # A + νI in place of A makes ΩᵀAΩ definite where A has a lower rank; its trace is νn too large.
    shift = 10 * precision * norm
    while True:
        shifted = y + shift * omega
        h = omega.T @ shifted
        factor, failed = torch.linalg.cholesky_ex((h + h.T) / 2)
        if not int(failed):
            break
        shift *= 10
    # A⟨Ω⟩ = BBᵀ with B = YC⁻ᵀ, H = CCᵀ; leaving ωᵢ out takes sᵢsᵢᵀ away, sᵢ = YH⁻¹eᵢ/√(H⁻¹)ᵢᵢ.
    # So Tr A⟨Ω₋ᵢ⟩ = ‖B‖² − ‖sᵢ‖², and ωᵢᵀ(A − A⟨Ω₋ᵢ⟩)ωᵢ = ⟨sᵢ, ωᵢ⟩².
    b = torch.linalg.solve_triangular(factor, shifted.T, upper=False).T
    inverse = torch.cholesky_inverse(factor)
    s = shifted @ inverse / inverse.diagonal().sqrt()
    residuals = (size - m + 1) * (s * omega).sum(0).square()
    spanned = b.square().sum() - s.square().sum(0)
    estimates = spanned + residuals - shift * size
    return float(estimates.mean())
