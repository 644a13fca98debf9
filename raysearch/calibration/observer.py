"""Observers: what values a tensor takes, per sample, so that shards merge exactly."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MinMaxObserver(nn.Module):
    """Passes its input through and records min and max of every sample.

    After a forward `minima` and `maxima` hold, per site call, one value a sample (dimension 0 of the input).
    """

    def __init__(self) -> None:
        super().__init__()
        self.minima: list[Tensor] = []
        self.maxima: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """The input, unchanged."""
        rows = x.detach().reshape(x.shape[0], -1)
        self.minima.append(rows.amin(1).double())
        self.maxima.append(rows.amax(1).double())
        return x

    def collect(self) -> Tensor:
        """Rows (min, max) per sample over all calls since the last one, shape [N, 2], float64; then forget.

        Several sites of one point see the same tensor, so their calls are merged by sample where the
        counts match, and appended otherwise. Without a call there are no rows.
        """
        if not self.minima:
            return torch.empty((0, 2), dtype=torch.float64)
        sizes = {values.shape[0] for values in self.minima}
        if len(sizes) == 1:
            low = torch.stack(self.minima).amin(0)
            high = torch.stack(self.maxima).amax(0)
        else:
            low, high = torch.cat(self.minima), torch.cat(self.maxima)
        self.minima, self.maxima = [], []
        return torch.stack([low, high], 1)
