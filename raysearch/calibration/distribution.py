"""How often each value occurs: counted in one pass, merged exactly, without knowing the range first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FloatArray = npt.NDArray[np.float64]

SIGNIFICANT_BITS = 12
"""Values are counted rounded to this many significant bits: a relative error of at most 2⁻¹²."""

EXACT_BITS = 24
"""All of a float32."""

_CHUNK = 1 << 22
_FEW = 1 << 18
# Sorting so few is faster than walking all bins.


@dataclass(frozen=True)
class Distribution:
    """Distinct values, ascending, and how often each occurs.

    Counts are integers and the rounding of a value depends on nothing but the value. So a merge of parts
    equals the single pass bit for bit, however the samples were cut and in whatever order they come.

    Attributes:
        values: float64, ascending, distinct.
        counts: int64, positive.
    """

    values: FloatArray
    counts: npt.NDArray[np.int64]

    @property
    def total(self) -> int:
        """Number of values counted."""
        return int(self.counts.sum())

    @classmethod
    def merge(cls, parts: Sequence[Distribution]) -> Distribution:
        """The distribution of all parts together."""
        every = np.concatenate([part.values for part in parts])
        values, inverse = np.unique(every, return_inverse=True)
        counts = np.zeros(len(values), np.int64)
        np.add.at(counts, inverse.reshape(-1), np.concatenate([part.counts for part in parts]))
        return cls(values, counts)

    def magnitudes(self) -> Distribution:
        """The distribution of |x|."""
        order = np.argsort(np.abs(self.values), kind="stable")
        values, inverse = np.unique(np.abs(self.values)[order], return_inverse=True)
        counts = np.zeros(len(values), np.int64)
        np.add.at(counts, inverse.reshape(-1), self.counts[order])
        return Distribution(values, counts)

    def where(self, keep: npt.NDArray[np.bool_]) -> Distribution:
        """The part with some of the distinct values."""
        return Distribution(self.values[keep], self.counts[keep])

    def percentile(self, percent: float) -> float:
        """The percentile of all values, interpolated linearly between neighbours as numpy does."""
        position = percent / 100 * (self.total - 1)
        below = int(np.floor(position))
        ends = np.cumsum(self.counts)
        low, high = (
            float(self.values[np.searchsorted(ends, min(rank, self.total - 1), side="right")])
            for rank in (below, below + 1)
        )
        return low + (high - low) * (position - below)

    def median(self) -> float:
        """The middle value, or the mean of the two middle ones."""
        return self.percentile(50.0)


def count_values(x: Tensor, significant_bits: int = SIGNIFICANT_BITS) -> Distribution:
    """Count the values of a tensor, rounded to `significant_bits` (ties away from zero).

    Cost: one pass; 8 MiB, and 8 bytes an element of at most 4 million at once. The answer takes 16 bytes a
    distinct rounded value: 2¹¹ per power of two that the data spans, so about 20,000 for ten octaves.
    With 24 bits nothing is rounded and every distinct value is kept, after a sort.
    """
    flat = x.detach().float().reshape(-1)
    if significant_bits >= EXACT_BITS:
        values, counts = torch.unique(flat, return_counts=True)
        return _distinct(values.cpu().numpy(), counts.cpu().numpy())
    drop = EXACT_BITS - significant_bits
    zero = 1 << (31 - drop)

    def keys(part: Tensor) -> Tensor:
        bits = part.contiguous().view(torch.int32)
        # The sum stays below 2³²: the largest magnitude, of a NaN, is 2³¹ − 1.
        sizes = ((bits & 0x7FFFFFFF).long() + (1 << (drop - 1))) >> drop
        return torch.where(bits < 0, -sizes, sizes)

    if flat.numel() < _FEW:
        present, counts = torch.unique(keys(flat), return_counts=True)
    else:
        bins = torch.zeros(2 * zero + 1, dtype=torch.int64, device=flat.device)
        for chunk in torch.split(flat, _CHUNK):
            bins += torch.bincount(keys(chunk) + zero, minlength=2 * zero + 1)
        filled = bins.nonzero().reshape(-1)
        present, counts = filled - zero, bins[filled]
    magnitudes = (present.abs() << drop).to(torch.int32).cpu().numpy().view(np.float32)
    return _distinct(magnitudes * np.sign(present.cpu().numpy()), counts.cpu().numpy())


def _distinct(values: npt.NDArray[np.floating], counts: npt.NDArray[np.int64]) -> Distribution:
    # −0 and 0 are one value.
    return Distribution(values.astype(np.float64) + 0.0, counts.astype(np.int64))
