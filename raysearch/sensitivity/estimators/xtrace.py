"""XTrace: the trace of any block from m products, half of them spent on a basis of its range.

With k = m/2 Gaussian columns Ω, let Qᵢ be an orthonormal basis of the range of AΩ₋ᵢ and ρᵢ = (I − QᵢQᵢᵀ)ωᵢ.
Then tᵢ = Tr(QᵢᵀAQᵢ) + (n − k + 1) ρᵢᵀAρᵢ / ‖ρᵢ‖² has the mean Tr A; the estimate is the mean of the tᵢ. The
block need not be definite, so it serves the task's loss; for positive semi-definite ones XNysTrace gets more
out of the same products.

Source: Epperly, Tropp and Webber, "XTrace: Making the most of every sample in stochastic trace estimation",
SIAM J. Matrix Anal. Appl. 2024, sections 2.1 and 3.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from raysearch.config.estimators import PER_SAMPLE
from raysearch.errors import ConfigError
from raysearch.evaluation import ShardView
from raysearch.seeding import derive_seed
from raysearch.sensitivity.estimators.products import Multiply, estimate_blocks, gaussian
from raysearch.sensitivity.estimators.protocol import TraceRequest


class XTrace:
    """A draw is one XTrace of m Hessian-vector products a weight.

    Work of a call with P draws: one forward and one gradient with its graph, then P · m products a weight;
    memory 5 · 8 · n · m/2 bytes. A weight of at most m elements takes its n columns instead and is exact.

    Args:
        num_products: m, even, at least 4.
    """

    name = "xtrace"
    deterministic = False
    per_sample = name in PER_SAMPLE

    def __init__(self, num_products: int = 16) -> None:
        if num_products < 4 or num_products % 2:
            raise ConfigError(
                f"XTrace needs an even number of products a draw from 4 on, not {num_products}."
            )
        self.num_products = num_products

    def draw(self, view: ShardView, request: TraceRequest) -> Mapping[str, np.ndarray]:
        """See `TraceEstimator.draw`."""

        def estimate(weight: Tensor, multiply: Multiply, name: str, index: int) -> float:
            seed = derive_seed(request.seed, "xtrace", name, view.index, index)
            omega = gaussian(weight.numel(), self.num_products // 2, seed, weight.device)
            y = multiply(omega)
            if not bool(y.any()):
                return 0.0
            q, r = torch.linalg.qr(y)
            return xtrace(omega, y, q, r, multiply(q))

        return estimate_blocks(view, request, estimate, self.num_products)


def xtrace(omega: Tensor, y: Tensor, q: Tensor, r: Tensor, z: Tensor) -> float:
    """The estimate from Y = AΩ = QR and Z = AQ.

    Args:
        omega: Ω, [n, k], float64, as all of these.
        y: AΩ, [n, k].
        q: orthonormal basis of the range of Y, [n, k].
        r: upper triangular, [k, k].
        z: AQ, [n, k].
    """
    size, k = omega.shape
    # Where the rank is below k, R is singular; a diagonal of rounding size leaves the spanned range as it is.
    floor = torch.finfo(torch.float64).eps * float(torch.linalg.matrix_norm(r))
    diagonal = r.diagonal()
    r = r + torch.diag(torch.where(diagonal.abs() < floor, floor - diagonal, torch.zeros_like(diagonal)))
    # Qᵢ spans Q without the direction sᵢ, the one orthogonal to all columns of R but the i-th.
    eye = torch.eye(k, dtype=r.dtype, device=r.device)
    s = torch.linalg.solve_triangular(r.T, eye, upper=False)
    s = s / torch.linalg.vector_norm(s, dim=0)
    h = q.T @ z
    w = q.T @ omega
    # Coordinates in Q of the part of ωᵢ that lies in the span of Qᵢ; ρᵢ is the rest of ωᵢ.
    spanned = w - s * (s * w).sum(0)
    rho = omega - q @ spanned
    a_rho = y - z @ spanned
    residuals = (size - k + 1) * (rho * a_rho).sum(0) / rho.square().sum(0)
    of_basis = h.trace() - (s * (h @ s)).sum(0)
    estimates = of_basis + residuals
    return float(estimates.mean())
