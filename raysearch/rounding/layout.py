"""A weight as rows, one an output channel, and which rows share a scale.

G  convolution groups, or matrices of a batched weight    R  rows of a group
d  inputs of a row    S  scales
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from raysearch.records.granularity import Granularity


@dataclass(frozen=True)
class Layout:
    """How the rows of a weight lie in its tensor.

    Attributes:
        is_transposed: whether it is [inputs, outputs, kernel…], as transposed convolutions and products have
            it; else [outputs, inputs, kernel…].
        groups: convolution groups; the outputs of one read only its inputs.
        is_batched: whether it has a matrix for each group, along a dimension 0 of its own.
    """

    is_transposed: bool = False
    groups: int = 1
    is_batched: bool = False

    def num_rows(self, shape: Sequence[int]) -> int:
        """R of a weight of such a shape."""
        if self.is_batched:
            return shape[self._row_axis]
        return shape[1] if self.is_transposed else shape[0] // self.groups

    @property
    def _row_axis(self) -> int:
        """Dimension of the outputs."""
        return int(self.is_batched) + int(self.is_transposed)

    def rows(self, weight: Tensor) -> Tensor:
        """[G, R, d] of a weight."""
        if self.is_batched:
            return weight.transpose(1, 2) if self.is_transposed else weight
        if not self.is_transposed:
            return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)
        inputs, outputs = weight.shape[:2]
        split = weight.reshape(self.groups, inputs // self.groups, outputs, -1)
        return split.transpose(1, 2).reshape(self.groups, outputs, -1)

    def weight(self, rows_grd: Tensor, shape: Sequence[int]) -> Tensor:
        """The weight of such a shape that has these rows."""
        if self.is_batched:
            return rows_grd.transpose(1, 2) if self.is_transposed else rows_grd
        if not self.is_transposed:
            return rows_grd.reshape(tuple(shape))
        inputs, outputs = shape[:2]
        split = rows_grd.reshape(self.groups, outputs, inputs // self.groups, prod(shape[2:]))
        return split.transpose(1, 2).reshape(tuple(shape))

    def scale_ids(self, shape: Sequence[int], granularity: Granularity) -> Tensor | None:
        """Index of the scale that each row has, [G, R]; None where a row has several.

        Groups of a transposed convolution and of a batched weight share their scales: channel 0 of every
        group has scale 0.
        """
        own, num_rows = self._row_axis, self.num_rows(shape)
        places = granularity.normalized(shape)
        if places.axis is None:
            return torch.zeros(self.groups, num_rows, dtype=torch.long)
        if places.axis != own or places.group_axis is not None:
            return None
        if self.is_transposed or self.is_batched:
            return torch.arange(num_rows).repeat(self.groups, 1)
        return torch.arange(shape[own]).reshape(self.groups, num_rows)
