"""What rounding asks of second moments that are damped, reordered and factored.

G  groups of rows that read different inputs    d  inputs of a row    R  rows of a group
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

MOST_DAMPING = 1.0
"""Where the damping stops being raised."""

LEAST_RAISED = 1e-6
"""What a damping of 0 is raised to first."""


@dataclass(frozen=True)
class Factor(ABC):
    """H, and R with R Rᵀ = H + diag(added), both in the order of rounding; once for all schemes of a weight.

    All that a method gives is float64.

    Attributes:
        added_gd: what was added to the diagonal, in the order of the weight's columns.
        order_gd: the column that is rounded 1st, 2nd, …
        damping: λ, as a share of the mean of the diagonal.
        num_dead: inputs that were never other than 0.
    """

    added_gd: Tensor
    order_gd: Tensor
    damping: float
    num_dead: int

    @property
    @abstractmethod
    def moments_diagonal_gd(self) -> Tensor:
        """The diagonal of H, in the order of the weight's columns."""

    @property
    @abstractmethod
    def diagonal_gd(self) -> Tensor:
        """The diagonal of R."""

    @abstractmethod
    def upper(self, first: int, start: int, stop: int) -> Tensor:
        """R's rows first … start−1, columns start … stop−1."""

    @abstractmethod
    def times_moments(self, rows_grd: Tensor) -> Tensor:
        """Rows […, G, R, d] times H."""

    @abstractmethod
    def moments_of(self, rows: slice, columns: slice) -> Tensor:
        """A part of H, in the order of the weight's columns, [G, rows, columns]."""

    @abstractmethod
    def divided(self, rows_grd: Tensor) -> Tensor:
        """Rows times (H + diag(added))⁻¹."""
