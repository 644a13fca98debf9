"""Where a call's tensors hold their samples: which axis, and whether a sample's rows stand together."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from raysearch.sensitivity.estimators.captured_calls import Call


@dataclass(frozen=True)
class Layout:
    """The axis that counts samples, perhaps merged with another.

    Attributes:
        axis: of the call's input and output; of size N·k.
        is_minor: the rows of a sample stand k apart … (k, N), as in `x.transpose(0, 1).flatten(0, 1)`,
            rather than together (N, k).
    """

    axis: int
    is_minor: bool = False

    def arrange(self, tensor: Tensor, num_samples: int) -> Tensor:
        """The tensor as [N, k, remaining axes]."""
        moved = tensor.movedim(self.axis, 0)
        rest = moved.shape[1:]
        if self.is_minor:
            return moved.reshape(-1, num_samples, *rest).transpose(0, 1)
        return moved.reshape(num_samples, -1, *rest)


def candidates(call: Call, num_samples: int) -> list[Layout]:
    """Layouts that the shape of a call's output allows, the usual one first."""
    axes = range(len(call.shape) - 1) if call.kind in ("linear", "embedding") else range(1)
    layouts = []
    for axis in axes:
        if call.shape[axis] and call.shape[axis] % num_samples == 0:
            layouts.append(Layout(axis))
            if call.shape[axis] > num_samples > 1:
                layouts.append(Layout(axis, is_minor=True))
    return layouts


def fits(layout: Layout, cotangents: list[Tensor]) -> bool:
    """Whether what comes back from sample i alone lies in the rows of sample i, for every i."""
    for index, cotangent in enumerate(cotangents):
        rows = layout.arrange(cotangent, len(cotangents))
        if bool(rows[:index].any()) or bool(rows[index + 1 :].any()):
            return False
    return True
