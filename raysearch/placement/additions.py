"""Residual additions of an eager model: counted, and reached by quantizers, while it runs.

A functional `x + y` is no module, so no hook sees it. A torch function mode, active while the root module
runs, does. An addition is named by the module whose own forward executes it and by its index there; both
the captured graph and the eager run count only additions of two floating-point tensors of equal shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

ADDITIONS: frozenset[Callable[..., Any]] = frozenset(
    {
        torch.add,
        torch.Tensor.add,
        torch.Tensor.add_,
        torch.Tensor.__add__,
        torch.Tensor.__radd__,
        torch.Tensor.__iadd__,
    }
)
ATEN_ADDITIONS = frozenset({"aten.add", "aten.add_"})

AdditionKey = tuple[str, int, int]
"""Owner module, occurrence, argument."""


def is_residual(arguments: tuple[Any, ...]) -> bool:
    """Whether the first two arguments are floating-point tensors of one shape."""
    if len(arguments) < 2:
        return False
    a, b = arguments[:2]
    tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
    return bool(tensors and a.is_floating_point() and b.is_floating_point() and a.shape == b.shape)


class AdditionTap(TorchFunctionMode):
    """While active, passes the operands of residual additions through the modules of `taps`.

    It is a plain object without closures: a deep copy of the model copies it together with the modules.
    """

    def __init__(self, taps: Mapping[AdditionKey, nn.Module]) -> None:
        super().__init__()
        self.taps = dict(taps)
        self.stack: list[str] = []
        self.seen: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Route the operands of an addition of the module on top of the stack."""
        if func in ADDITIONS and self.stack and is_residual(args):
            owner = self.stack[-1]
            index = self.seen[owner]
            self.seen[owner] += 1
            operands = [
                self.taps[owner, index, i](value) if (owner, index, i) in self.taps else value
                for i, value in enumerate(args[:2])
            ]
            args = (*operands, *args[2:])
        return func(*args, **(kwargs or {}))


class _Enter:
    def __init__(self, tap: AdditionTap, owner: str, is_root: bool) -> None:
        self.tap, self.owner, self.is_root = tap, owner, is_root

    def __call__(self, module: nn.Module, args: Any) -> None:
        if self.is_root:
            self.tap.stack.clear()
            self.tap.__enter__()  # type: ignore[no-untyped-call]
        self.tap.stack.append(self.owner)
        self.tap.seen[self.owner] = 0


class _Leave:
    def __init__(self, tap: AdditionTap, is_root: bool) -> None:
        self.tap, self.is_root = tap, is_root

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.tap.stack.pop()
        if self.is_root:
            self.tap.__exit__(None, None, None)  # type: ignore[no-untyped-call]


def tap_additions(model: nn.Module, owners: set[str], tap: AdditionTap) -> list[RemovableHandle]:
    """Attach a tap to a model; `owners` are the modules whose additions it counts.

    Returns:
        Handles whose `remove` takes the tap off again.
    """
    handles = []
    for owner in ["", *sorted(owners - {""})]:
        module = model.get_submodule(owner)
        is_root = owner == ""
        enter, leave = _Enter(tap, owner, is_root), _Leave(tap, is_root)
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))
    return handles
