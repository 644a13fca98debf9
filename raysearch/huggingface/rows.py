"""Samples in memory as a data set."""

from __future__ import annotations

from torch import Tensor
from torch.utils.data import Dataset


class Rows(Dataset[dict[str, Tensor]]):
    """Rows of some tensors, by name, as a map-style data set.

    Args:
        **columns: name → [samples, …].
    """

    def __init__(self, **columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}

    def first(self, count: int) -> dict[str, Tensor]:
        """A batch of the first samples."""
        return {name: column[:count] for name, column in self.columns.items()}
