"""Observers: what values a tensor takes, so that shards merge exactly."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raysearch.calibration.distribution import Distribution, count_values
from raysearch.calibration.statistics import Statistics

Collected = Mapping[str, npt.NDArray[np.generic]]
"""Arrays by name, see `Observer.collect`."""


@dataclass(frozen=True)
class ObservationPlan:
    """What an observer keeps besides the extremes of every sample.

    Attributes:
        axis: dimension of the channels in the tensor, counting the batch; None: all values together.
        significant_bits: with how many bits values are counted; 0: they are not.
        percentiles: lower and upper percentile taken of every sample; None: they are not.
    """

    axis: int | None = None
    significant_bits: int = 0
    percentiles: tuple[float, float] | None = None


@dataclass(frozen=True)
class _Record:
    """What passed an observer since it was last collected.

    An object of its own: lists on the module would be emptied by `frozen_eval`, as what a forward leaves.

    Attributes:
        extremes: of every tensor, [samples, channels, 2].
        rows: its values, where percentiles are taken.
        counted: its distributions, where values are counted.
        observed: the tensor itself. Weak, so that an observer keeps no activation alive; with the version,
            since an in-place operation makes another tensor of the same object.
    """

    extremes: list[Tensor] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    counted: list[list[Distribution]] = field(default_factory=list)
    observed: list[tuple[weakref.ref[Tensor], int]] = field(default_factory=list)

    def clear(self) -> None:
        for part in (self.extremes, self.rows, self.counted, self.observed):
            part.clear()


class Observer(nn.Module):
    """Passes its input through and records what its plan says of every sample (dimension 0) and channel.

    A tensor that several readers share is the same object and is counted once. Different tensors that pass
    in one forward (a module called twice) are pooled: by sample where their sample counts match, and as
    samples of their own otherwise.
    """

    def __init__(self, plan: ObservationPlan | None = None) -> None:
        super().__init__()
        self.plan = plan or ObservationPlan()
        self._record = _Record()

    def forward(self, x: Tensor) -> Tensor:
        """The input, unchanged; one without elements says nothing of a range."""
        if not x.numel():
            return x
        if any(tensor() is x and version == x._version for tensor, version in self._record.observed):
            return x
        self._record.observed.append((weakref.ref(x), x._version))
        rows = channel_values(x.detach(), self.plan.axis)
        self._record.extremes.append(torch.stack([rows.amin(2), rows.amax(2)], 2).double())
        if self.plan.percentiles is not None:
            self._record.rows.append(rows.clone())
        if self.plan.significant_bits:
            bits = self.plan.significant_bits
            self._record.counted.append([count_values(rows[:, c], bits) for c in range(rows.shape[1])])
        return x

    def collect(self) -> dict[str, npt.NDArray[np.generic]]:
        """What was recorded since the last call; then forget.

        `rows`: float64 [samples, channels, 2], or 4 with percentiles: (min, max, lower, upper).
        `values`, `counts`, `channels`: the distributions of all channels, one after another, if wanted.
        Without a forward there are no rows.
        """
        wide = 2 if self.plan.percentiles is None else 4
        if not self._record.extremes:
            return {"rows": np.empty((0, 1, wide))}
        rows = _pool(self._record.extremes)
        if self.plan.percentiles is not None:
            rows = torch.cat([rows, _sample_percentiles(self._record.rows, self.plan.percentiles)], 2)
        arrays: dict[str, npt.NDArray[np.generic]] = {"rows": rows.cpu().numpy()}
        if self._record.counted:
            merged = [Distribution.merge(parts) for parts in zip(*self._record.counted, strict=True)]
            arrays |= _packed(merged)
        self._record.clear()
        return arrays


def merge_collected(parts: Sequence[Collected]) -> Collected:
    """What one observer would have collected of several pieces of a shard, in their order."""
    merged = Statistics.from_units(parts)
    if not len(merged.rows):
        return parts[0]
    arrays: dict[str, npt.NDArray[np.generic]] = {"rows": merged.rows}
    if merged.distributions:
        arrays |= _packed(merged.distributions)
    return arrays


def _packed(channels: Sequence[Distribution]) -> dict[str, npt.NDArray[np.generic]]:
    sizes = [len(channel.values) for channel in channels]
    return {
        "values": np.concatenate([channel.values for channel in channels]),
        "counts": np.concatenate([channel.counts for channel in channels]),
        "channels": np.repeat(np.arange(len(channels), dtype=np.int32), sizes),
    }


def channel_values(x: Tensor, axis: int | None) -> Tensor:
    """[samples, channels, values]; a single channel without an axis."""
    if axis is None:
        return x.reshape(x.shape[0], 1, -1)
    return x.movedim(axis, 1).reshape(x.shape[0], x.shape[axis], -1)


def _pool(calls: list[Tensor]) -> Tensor:
    if len({call.shape[0] for call in calls}) > 1:
        return torch.cat(calls)
    every = torch.stack(calls)
    return torch.stack([every[..., 0].amin(0), every[..., 1].amax(0)], 2)


def _sample_percentiles(calls: list[Tensor], percentiles: tuple[float, float]) -> Tensor:
    alike = len({call.shape[0] for call in calls}) == 1
    parts = []
    for rows in [torch.cat(calls, 2)] if alike else calls:
        ordered = rows.sort(2).values.double()
        last = ordered.shape[2] - 1
        columns = []
        for percent in percentiles:
            position = percent / 100 * last
            below = min(int(position), last)
            low, high = ordered[..., below], ordered[..., min(below + 1, last)]
            columns.append(low + (high - low) * (position - below))
        parts.append(torch.stack(columns, 2))
    return torch.cat(parts)
