"""Groups of inputs as a dimension of their own, over which a scale broadcasts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from torch import Tensor, nn

from raysearch.records.granularity import Granularity

Value = TypeVar("Value", Tensor, int | Tensor)


@dataclass(frozen=True)
class Blocks:
    """A tensor whose group axis is cut: […, inputs, …] as […, groups, group size, …].

    Where the size divides, that is a view; else the last group is filled up with zeros, which are on every
    grid.

    Attributes:
        axis: that the groups lie along.
        size: inputs of a group.
        length: of the axis.
    """

    axis: int
    size: int
    length: int

    @classmethod
    def of(cls, shape: Sequence[int], granularity: Granularity) -> Self | None:
        """The blocks of a tensor of such a shape; None where it has no groups.

        Raises:
            PlacementError: the shape lacks an axis of the granularity.
        """
        if granularity.group_size is None:
            return None
        axis = granularity.normalized(shape).group_axis
        assert axis is not None  # an axis and a size go together
        return cls(axis, granularity.group_size, shape[axis])

    def cut(self, x: Tensor) -> Tensor:
        """The tensor in blocks."""
        missing = -self.length % self.size
        if missing:
            # Pairs from the last dimension on, as torch has them.
            others = [0, 0] * (x.ndim - 1 - self.axis)
            x = nn.functional.pad(x, [*others, 0, missing])
        before, behind = x.shape[: self.axis], x.shape[self.axis + 1 :]
        return x.reshape(*before, -(-self.length // self.size), self.size, *behind)

    def broadcast(self, value: Value) -> Value:
        """One value a scale as what broadcasts to the blocks; a number stays one."""
        return value.unsqueeze(self.axis + 1) if isinstance(value, Tensor) else value

    def join(self, blocks: Tensor) -> Tensor:
        """The tensor of which these are the blocks."""
        return blocks.flatten(self.axis, self.axis + 1).narrow(self.axis, 0, self.length)


def spread(value: Tensor, shape: Sequence[int], granularity: Granularity) -> Tensor:
    """One value a scale as what broadcasts to the tensor itself.

    Args:
        value: in the shape of the scales.
        shape: of the tensor.
        granularity: which of its elements share a scale.
    """
    blocks = Blocks.of(shape, granularity)
    if blocks is None:
        return value
    return value.repeat_interleave(blocks.size, blocks.axis).narrow(blocks.axis, 0, blocks.length)
