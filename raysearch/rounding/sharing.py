"""Which elements of a weight share a scale, and which scales are chosen together.

G  convolution groups    R  rows of a group    d  inputs of a row    K  scale groups along a row    S  scales
C  candidates    B  bundles
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from raysearch.quantizer import storable
from raysearch.rounding.layout import ScalePlaces


@dataclass(frozen=True)
class Sharing:
    """Which elements of a weight share a scale, and which scales are chosen together.

    Scales of one row act on each other through H, so they make one bundle; where a row has one scale, a
    bundle is a scale with all its rows.

    Attributes:
        places: the scale of each row and scale group.
        num_scales: S.
        weights_gr: how much the error of each row counts.
        scale_format: form in which the scales are stored.
        step_s: what each scale is stored as an integer of; None: each is stored by itself.
        least: the least of these integers; 0 of minima.
    """

    places: ScalePlaces
    num_scales: int
    weights_gr: Tensor
    scale_format: str = "float32"
    step_s: Tensor | None = None
    least: int = 1

    def storable(self, scale: Tensor, ids: Tensor | None = None) -> Tensor:
        """The nearest scales that are stored, float64 for what follows.

        Args:
            scale: of all scales, or of some.
            ids: which those are, in the same shape; None: all.
        """
        step = self.step_s
        if step is not None and ids is not None:
            step = step[ids]
        return storable(scale, self.scale_format, step, self.least).double()

    @property
    def has_groups(self) -> bool:
        """Whether a row has several scales."""
        return self.places.group_of_d is not None

    @cached_property
    def bundle_of_gr(self) -> Tensor:
        """The bundle of each row, [G, R]."""
        ids_grk = self.places.ids_grk
        if self.has_groups:
            return torch.arange(ids_grk[..., 0].numel(), device=ids_grk.device).reshape(ids_grk.shape[:2])
        return ids_grk[..., 0]

    @cached_property
    def bundle_of_s(self) -> Tensor:
        """The bundle of each scale."""
        ids_grk = self.places.ids_grk
        bundles = torch.zeros(self.num_scales, dtype=torch.long, device=ids_grk.device)
        bundles[ids_grk] = self.bundle_of_gr[..., None].expand_as(ids_grk)
        return bundles

    def over_columns(self, values_cgrd: Tensor) -> Tensor:
        """The sum over the columns of each scale group, […, R, K]."""
        if not self.has_groups:
            return values_cgrd.sum(-1, keepdim=True)
        return values_cgrd @ self._member_dk

    def extremes(self, rows_grd: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the greatest value of each scale's elements, widened to 0, [S]."""
        ids = self.places.ids_grk.flatten()
        parts = [rows_grd[..., span] for span in self.places.spans()]
        lowest_grk = torch.stack([part.amin(2) for part in parts], 2)
        highest_grk = torch.stack([part.amax(2) for part in parts], 2)
        zeros_s = rows_grd.new_zeros(self.num_scales)
        return (
            zeros_s.scatter_reduce(0, ids, lowest_grk.flatten(), "amin"),
            zeros_s.scatter_reduce(0, ids, highest_grk.flatten(), "amax"),
        )

    def sums(self, values_cgrk: Tensor) -> Tensor:
        """The weighted sum over the rows of each scale, [C, S]."""
        weighted = (values_cgrk * self.weights_gr[..., None]).flatten(1)
        result = weighted.new_zeros((len(weighted), self.num_scales))
        return result.index_add_(1, self.places.ids_grk.flatten(), weighted)

    def bundle_sums(self, values_cgrk: Tensor) -> Tensor:
        """The weighted sum over the rows of each bundle, [C, B]."""
        if not self.has_groups:
            return self.sums(values_cgrk)
        return (values_cgrk.sum(-1) * self.weights_gr).flatten(1)

    def spread(self, values_cs: Tensor) -> Tensor:
        """One value a row and scale group, [C, G, R, K]."""
        return values_cs[:, self.places.ids_grk]

    def of_columns(self, values_s: Tensor) -> Tensor:
        """The value of every column's scale, [G, R, d or 1]."""
        values_grk = values_s[self.places.ids_grk]
        group_of_d = self.places.group_of_d
        return values_grk if group_of_d is None else values_grk[..., group_of_d]

    @cached_property
    def _member_dk(self) -> Tensor:
        """1 where a column belongs to a scale group."""
        assert self.places.group_of_d is not None
        return F.one_hot(self.places.group_of_d).double()
