"""The gradients of fake-quantization, element by element in Python floats."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def fake_quantize_gradients(
    x: Tensor, scale: Tensor, low: int, high: int, grad: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """dL/dx and dL/ds element by element in Python floats; scale broadcasts to x."""
    dx, ds = torch.zeros_like(x), torch.zeros(scale.shape, dtype=torch.float64)
    wide = scale.expand_as(x)
    for index in np.ndindex(*x.shape):
        v = float(x[index] / wide[index])
        rounded = float(np.rint(np.float32(v)))
        level = min(max(rounded, low), high)
        g = float(grad[index])
        spot = tuple(i if size > 1 else 0 for i, size in zip(index, scale.shape, strict=True))
        if level == rounded:
            dx[index] = g
            ds[spot] += gamma * g * (level - v)
        else:
            ds[spot] += gamma * g * level
    return dx, ds
