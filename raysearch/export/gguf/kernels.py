"""What llama.cpp's kernels do to the vectors that they multiply with, done to a module of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_BLOCKS = (256, 32)
"""Values of one scale: of the types with `_k` and of the others. A row has the larger ones where it can."""
_HIGHEST = 127
_LINEAR = (torch.nn.functional.linear, torch.ops.aten.linear.default)
"""As modules call it, and as captured programs do."""


class RoundedInputs(TorchFunctionMode):
    """While it is entered, linear layers read their inputs rounded to 8 bits, block by block.

    llama.cpp does so wherever a weight is quantized. Sums differ in their order, so that outputs are not
    equal to those of llama.cpp, but as far from the ones without it.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a function of torch."""
        if func in _LINEAR:
            args = (_rounded(args[0]), *args[1:])
        return func(*args, **(kwargs or {}))


def _rounded(values: Tensor) -> Tensor:
    length = values.shape[-1]
    sizes = [size for size in _BLOCKS if length % size == 0]
    if not sizes:
        # No quantized type holds the weight.
        return values
    blocks = values.reshape(*values.shape[:-1], -1, sizes[0])
    scale = blocks.abs().amax(-1, keepdim=True) / _HIGHEST
    # A block of zeros stays one.
    scale = scale.clamp(min=torch.finfo(scale.dtype).tiny)
    return ((blocks / scale).round() * scale).reshape(values.shape)
