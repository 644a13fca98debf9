"""Residual additions of an eager model: counted, and reached by quantizers, while it runs.

A functional `x + y` is no module, so no hook sees it. A torch function mode, active while the root module
runs, does. An addition is named by the module whose own forward executes it and by its index there; both
the captured graph and the eager run count only additions of two floating-point tensors whose shapes agree
in all but the batch dimension. The batch dimension is left out because the example's batch may be 1: then
`x + position` has equal shapes at capture and unequal ones later, and every index after it would shift.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

IN_PLACE: frozenset[Callable[..., Any]] = frozenset({torch.Tensor.add_, torch.Tensor.__iadd__})
ADDITIONS: frozenset[Callable[..., Any]] = IN_PLACE | {
    torch.add,
    torch.Tensor.add,
    torch.Tensor.__add__,
    torch.Tensor.__radd__,
}
ATEN_ADDITIONS = frozenset({"aten.add", "aten.add_"})

AdditionKey = tuple[str, int, int]
"""Owner module, occurrence, argument."""


def is_residual(arguments: tuple[Any, ...]) -> bool:
    """Whether the first two arguments are floating-point tensors that `same_features` accepts."""
    if len(arguments) < 2:
        return False
    a, b = arguments[:2]
    tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
    return bool(
        tensors and a.is_floating_point() and b.is_floating_point() and same_features(a.shape, b.shape)
    )


def same_features(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two shapes have as many dimensions, at least one, and agree in all but the first."""
    return 0 < len(a) == len(b) and a[1:] == b[1:]


class AdditionTap(TorchFunctionMode):
    """While active, passes the operands of residual additions through the modules of `taps`.

    It is a plain object without closures: a deep copy of the model copies it together with the modules.
    """

    def __init__(self, taps: Mapping[AdditionKey, nn.Module]) -> None:
        super().__init__()
        self.taps = dict(taps)
        self.stack: list[str] = []
        self.seen: Counter[str] = Counter()
        self.busy = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Route the operands of an addition of the module on top of the stack."""
        kwargs = kwargs or {}
        # Busy: an interrupt (Ctrl-C) skipped a Leave, so this mode is active twice; only one may count.
        if func not in ADDITIONS or self.busy or not self.stack or not is_residual(args):
            return func(*args, **kwargs)
        owner = self.stack[-1]
        index = self.seen[owner]
        self.seen[owner] += 1
        self.busy = True
        try:
            return self._add(func, owner, index, args, kwargs)
        finally:
            self.busy = False

    def _add(self, func: Any, owner: str, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first, second = self.taps.get((owner, index, 0)), self.taps.get((owner, index, 1))
        if first is None and second is None:
            return func(*args, **kwargs)
        a, b = args[:2]
        in_place = func in IN_PLACE
        if in_place:
            # The quantizers keep their inputs for backward, and `a` is about to be overwritten.
            kept = a.clone() if torch.is_grad_enabled() else a
            target, a, b = a, kept, (kept if b is a else b)
        a = a if first is None else first(a)
        b = b if second is None else second(b)
        if not in_place:
            return func(a, b, *args[2:], **kwargs)
        # Whoever else holds the tensor sees the sum, as in the float model.
        return target.copy_(torch.add(a, b, *args[2:], **kwargs))


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
        if self.tap.stack:
            self.tap.stack.pop()
        if self.is_root:
            self.tap.__exit__(None, None, None)  # type: ignore[no-untyped-call]


def tap_additions(model: nn.Module, owners: set[str], tap: AdditionTap) -> list[RemovableHandle]:
    """Attach a tap to a model; `owners` are the modules whose additions it counts.

    Returns:
        Handles whose `remove` takes the tap off again.
    """
    modules = {owner: model.get_submodule(owner) for owner in ["", *sorted(owners - {""})]}
    handles = []
    for owner, module in modules.items():
        is_root = owner == ""
        enter, leave = _Enter(tap, owner, is_root), _Leave(tap, is_root)
        # First of all hooks: a later one may raise, and Leave then runs; it must find what Enter did.
        handles.append(module.register_forward_pre_hook(enter, prepend=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    return handles
