"""How many scales a tensor has: one, one a channel, or one a group of inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from raysearch.errors import PlacementError

GranularityKind = Literal["per_tensor", "per_channel", "per_group"]
"""As settings, profiles and export targets name it."""


@dataclass(frozen=True)
class Granularity:
    """Which elements of a tensor share a scale.

    Per tensor: all of them. Per channel: those of one index along `axis`. Per group: those of one index along
    `axis` and of `group_size` neighbours along `group_axis`, the inputs; the last group may be shorter, as
    in ONNX's blocked quantization.

    Axes may be negative, as torch counts them, until `normalized` says which they are.

    Attributes:
        axis: channel axis; None: one scale for all.
        group_axis: axis along which groups lie; None: no groups.
        group_size: elements of a group along `group_axis`; None: no groups.

    Example:
        >>> Granularity.per_group(64).scale_shape((10, 200))
        (10, 4)
    """

    axis: int | None = None
    group_axis: int | None = None
    group_size: int | None = None

    def __post_init__(self) -> None:
        if (self.group_axis is None) != (self.group_size is None):
            raise ValueError(f"group_axis and group_size go together: {self.group_axis}, {self.group_size}")
        if self.group_size is not None and (self.group_size < 1 or self.axis in (None, self.group_axis)):
            raise ValueError(
                f"groups of {self.group_size} along axis {self.group_axis} need a size of at least 1 and a "
                f"channel axis of their own, not {self.axis}"
            )

    @classmethod
    def per_channel(cls, axis: int = 0) -> Granularity:
        """One scale for each index along an axis."""
        return cls(axis)

    @classmethod
    def per_group(cls, group_size: int, axis: int = 0, group_axis: int = 1) -> Granularity:
        """One scale for each index along `axis` and `group_size` neighbours along `group_axis`.

        Args:
            group_size: neighbours that share a scale; the last group may have fewer.
            axis: dimension of the channels.
            group_axis: dimension that the groups divide.
        """
        return cls(axis, group_axis, group_size)

    @property
    def kind(self) -> GranularityKind:
        """Its name in settings."""
        if self.axis is None:
            return "per_tensor"
        return "per_channel" if self.group_size is None else "per_group"

    def normalized(self, shape: Sequence[int], name: str = "") -> Granularity:
        """The same with axes counted from 0.

        Args:
            shape: of the tensor.
            name: the quantizer, for messages.

        Raises:
            PlacementError: an axis does not exist.
        """
        dims = len(shape)
        for axis in (self.axis, self.group_axis):
            if axis is not None and not -dims <= axis < dims:
                raise PlacementError(
                    f"'{name}' of shape {tuple(shape)} has no axis {axis} for its scales; use one of "
                    f"0 … {dims - 1}, or None for one scale per tensor."
                )
        axis = None if self.axis is None else self.axis % dims
        group_axis = None if self.group_axis is None else self.group_axis % dims
        return replace(self, axis=axis, group_axis=group_axis)

    def behind_batch(self) -> Granularity:
        """That of a batch, given that of one sample: axes counted from 0 move behind the batch's."""
        axis = None if self.axis is None else self.axis + 1
        group_axis = None if self.group_axis is None else self.group_axis + 1
        return replace(self, axis=axis, group_axis=group_axis)

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of a tensor's scales: (1,) per tensor, else its own with 1 where they are shared."""
        if self.axis is None:
            return (1,)
        places = self.normalized(shape)
        sizes = [1] * len(shape)
        for axis, size in enumerate(shape):
            if axis == places.axis:
                sizes[axis] = size
            elif axis == places.group_axis and places.group_size is not None:
                sizes[axis] = -(-size // places.group_size)
        return tuple(sizes)

    def num_scales(self, shape: Sequence[int]) -> int:
        """Number of scales of a tensor."""
        return prod(self.scale_shape(shape))

    def __str__(self) -> str:
        if self.axis is None:
            return "per tensor"
        channel = f"per channel of axis {self.axis}"
        if self.group_size is None:
            return channel
        return f"per group of {self.group_size} along axis {self.group_axis}, {channel}"


PER_TENSOR = Granularity()
"""One scale for all elements."""
