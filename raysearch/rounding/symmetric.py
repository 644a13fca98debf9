"""Symmetric matrices as their upper halves, row after row."""

from __future__ import annotations

from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]

MIRRORED_ROWS = 512
"""Rows that are mirrored at once."""


def packed(matrices_gdd: Array) -> Array:
    """The upper halves of matrices [G, d, d], [G, d(d+1)/2]; what lies below the diagonal is not read."""
    num_groups, size, _ = matrices_gdd.shape
    halves = np.empty((num_groups, size * (size + 1) // 2), matrices_gdd.dtype)
    start = 0
    for row in range(size):
        halves[:, start : start + size - row] = matrices_gdd[:, row, row:]
        start += size - row
    return halves


def unpacked(halves: Array) -> Array:
    """The matrices that `packed` was given."""
    num_groups, length = halves.shape
    size = isqrt(2 * length)
    matrices_gdd = np.empty((num_groups, size, size), halves.dtype)
    start = 0
    for row in range(size):
        matrices_gdd[:, row, row:] = halves[:, start : start + size - row]
        start += size - row
    for first in range(0, size, MIRRORED_ROWS):
        last = min(first + MIRRORED_ROWS, size)
        matrices_gdd[:, last:, first:last] = matrices_gdd[:, first:last, last:].transpose(0, 2, 1)
        corner = np.triu(matrices_gdd[:, first:last, first:last])
        diagonal = np.triu(np.tril(corner))
        matrices_gdd[:, first:last, first:last] = corner + (corner - diagonal).transpose(0, 2, 1)
    return matrices_gdd
