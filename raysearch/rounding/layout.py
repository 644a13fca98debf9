"""A weight as rows, one an output channel, and which of its elements share a scale.

G  convolution groups, or matrices of a batched weight    R  rows of a group
d  inputs of a row    K  scale groups along a row    S  scales
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from raysearch.records.granularity import Granularity


@dataclass(frozen=True)
class ScalePlaces:
    """Which scale every element of a weight's rows has.

    Attributes:
        ids_grk: index of the scale of each row and scale group. Where a row has several, none is shared.
        group_of_d: the scale group of every column, ascending; None where a row has one scale, K = 1.
    """

    ids_grk: Tensor
    group_of_d: Tensor | None = None

    def spans(self) -> list[slice]:
        """The columns of every scale group."""
        if self.group_of_d is None:
            return [slice(None)]
        ends = self.group_of_d.bincount().cumsum(0).tolist()
        return [slice(first, last) for first, last in pairwise([0, *ends])]

    def to(self, device: torch.device) -> ScalePlaces:
        """The same on a device."""
        group_of_d = None if self.group_of_d is None else self.group_of_d.to(device)
        return ScalePlaces(self.ids_grk.to(device), group_of_d)


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
            return shape[2 if self.is_transposed else 1]
        return shape[1] if self.is_transposed else shape[0] // self.groups

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

    def scale_places(self, shape: Sequence[int], granularity: Granularity) -> ScalePlaces | None:
        """Where the scales of a weight lie; None where rows with several scales share them.

        Groups of a transposed convolution and of a batched weight share their scales: channel 0 of every
        group has scale 0.
        """
        places = granularity.normalized(shape)
        ids = torch.arange(granularity.num_scales(shape))
        if places.axis is not None:
            ids = ids.reshape(places.scale_shape(shape))
        if places.group_axis is not None and places.group_size is not None:
            groups = torch.arange(shape[places.group_axis]) // places.group_size
            ids = ids.index_select(places.group_axis, groups)
        ids_grd = self.rows(ids.expand(tuple(shape)))
        # Where a row goes from one scale to the next; kernel positions of an input lie together.
        is_next_d = (ids_grd[..., 1:] != ids_grd[..., :-1]).flatten(0, 1).any(0)
        firsts_k = F.pad(is_next_d.nonzero()[:, 0] + 1, (1, 0))
        ids_grk = ids_grd[..., firsts_k]
        if len(firsts_k) == 1:
            return ScalePlaces(ids_grk)
        is_shared = bool((ids_grk.flatten().bincount() > 1).any())
        return None if is_shared else ScalePlaces(ids_grk, F.pad(is_next_d.long().cumsum(0), (1, 0)))
