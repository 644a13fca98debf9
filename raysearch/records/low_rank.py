"""The Gram matrix of very many options as its factor, and what is asked of either form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MOST_DENSE = 8192
"""Options whose K is kept whole, 512 MiB; of more its factor is."""

FACTOR_BYTES = 2**31
"""A factor takes no more; where it would, K is kept whole."""

MOST_OPTIONS = 46_340
"""K of more has more numbers than the lists of a table count; it would take 16 GiB."""

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LowRank:
    """K = F·Fᵀ, exactly: K is the Gram matrix of the rows that responses are measured as.

    Attributes:
        factor: F, float64 [P, m], a row an option; m is the number of samples times what is kept of each.
    """

    factor: FloatArray

    @property
    def shape(self) -> tuple[int, int]:
        """Of K."""
        return len(self.factor), len(self.factor)

    def __matmul__(self, vector: FloatArray) -> FloatArray:
        """K·z of a vector z [P]; 2·P·m multiplications, where K itself would take P²."""
        product: FloatArray = self.factor @ (vector @ self.factor)
        return product


Gram = FloatArray | LowRank


def diagonal(gram: Gram) -> FloatArray:
    """The entries K_qq."""
    if isinstance(gram, LowRank):
        squares: FloatArray = np.einsum("qm,qm->q", gram.factor, gram.factor)
        return squares
    return np.diagonal(gram)


def entry(gram: Gram, row: int, column: int) -> float:
    """K_qr."""
    if isinstance(gram, LowRank):
        return float(gram.factor[row] @ gram.factor[column])
    return float(gram[row, column])


def row_sums(gram: Gram, columns: list[int]) -> FloatArray:
    """Σ over some columns of every row."""
    if isinstance(gram, LowRank):
        product: FloatArray = gram.factor @ gram.factor[columns].sum(axis=0)
        return product
    total: FloatArray = gram[:, columns].sum(axis=1)
    return total


def among(gram: Gram, rows: list[int]) -> FloatArray:
    """K of some options alone, a copy."""
    if isinstance(gram, LowRank):
        part = gram.factor[rows]
        product: FloatArray = part @ part.T
        return product
    # Not row by row and then column by column: whole rows are many times as large.
    copied: FloatArray = gram[np.ix_(rows, rows)]
    return copied


def sums_among(gram: Gram, rows: list[int]) -> FloatArray:
    """Σ over some columns of the same rows."""
    if isinstance(gram, LowRank):
        part = gram.factor[rows]
        product: FloatArray = part @ part.sum(axis=0)
        return product
    total: FloatArray = among(gram, rows).sum(axis=1)
    return total
