"""Functions that an eager model calls, counted and reached by quantizers while it runs.

A functional `x + y` or `q @ k` is no module, so no hook sees it. A torch function mode, active while the root
module runs, does. A call is named by the module whose own forward makes it, its kind, and its index among
the module's calls of that kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from raysearch.hooks.checkpoints import resume_checkpoints, suspend_checkpoints
from raysearch.hooks.functions import EAGER_CALLS, IN_PLACE, Call, CallMode, counts, plain_arguments
from raysearch.quantizer import Quantizer

CallKey = tuple[str, str, int, int]
"""Owner module, kind, occurrence, operand."""


class CallTap(CallMode):
    """While active, passes the operands of counted calls through the modules of `taps`.

    It is a plain object without closures: a deep copy of the model copies it together with the modules.

    Attributes:
        taps: key of an operand → the module it goes through.
        seen: (owner, kind) → calls counted in the owner's last forward.
    """

    def __init__(self, taps: Mapping[CallKey, nn.Module]) -> None:
        super().__init__()
        self.taps = dict(taps)
        self.stack: list[str] = []
        self.seen: Counter[tuple[str, str]] = Counter()
        self.busy = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Leave alone what no module of the model calls."""
        # Busy: an interrupt (Ctrl-C) skipped a Leave, so this mode is active twice; only one may count.
        if self.busy or not self.stack:
            return func(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)

    def on_call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Route the operands of a call of the module on top of the stack."""
        call = EAGER_CALLS.get(func)
        args = plain_arguments(func, args)
        slots = _counted_slots(call, args, kwargs) if call else None
        if call is None or slots is None:
            return func(*args, **kwargs)
        key = (self.stack[-1], call.kind)
        index = self.seen[key]
        self.seen[key] += 1
        modules = [self.taps.get((*key, index, operand)) for operand in range(len(slots))]
        self.busy = True
        try:
            if not any(module is not None for module in modules):
                return func(*args, **kwargs)
            return _through(func, modules, slots, args, kwargs)
        finally:
            self.busy = False

    def start(self, owner: str) -> None:
        """Forget the counts of a module: its forward begins."""
        for key in [key for key in self.seen if key[0] == owner]:
            self.seen[key] = 0


def _counted_slots(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int | str] | None:
    slots = call.slots(args, kwargs)
    if slots is None:
        return None
    values = [_value(slot, args, kwargs) for slot in slots]
    if not all(isinstance(value, torch.Tensor) for value in values):
        return None
    shapes = [tuple(value.shape) for value in values]
    return slots if counts(call.kind, shapes, all(v.is_floating_point() for v in values)) else None


def _value(slot: int | str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[slot] if isinstance(slot, int) else kwargs[slot]


def _through(
    func: Any,
    modules: list[nn.Module | None],
    slots: list[int | str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    positional, named = list(args), dict(kwargs)
    in_place = func in IN_PLACE
    if in_place:
        # The quantizers keep their inputs for backward, and the target is about to be overwritten.
        target = args[0].clone() if torch.is_grad_enabled() else args[0]
        positional = [target if value is args[0] else value for value in args]
    for slot, module in zip(slots, modules, strict=True):
        if module is not None and isinstance(slot, int):
            positional[slot] = module(positional[slot])
        elif module is not None:
            named[str(slot)] = module(named[str(slot)])
    if not in_place:
        return func(*positional, **named)
    # Whoever else holds the tensor sees the sum, as in the float model.
    return args[0].copy_(torch.add(*positional, **named))


class _Enter:
    def __init__(self, tap: CallTap, owner: str, is_root: bool) -> None:
        self.tap, self.owner, self.is_root = tap, owner, is_root

    def __call__(self, module: nn.Module, args: Any) -> None:
        if self.is_root:
            self.tap.stack.clear()
            self.tap.__enter__()  # type: ignore[no-untyped-call]
            suspend_checkpoints()
        self.tap.stack.append(self.owner)
        self.tap.start(self.owner)


class _Leave:
    def __init__(self, tap: CallTap, is_root: bool) -> None:
        self.tap, self.is_root = tap, is_root

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.tap.stack:
            self.tap.stack.pop()
        if self.is_root:
            resume_checkpoints()
            self.tap.__exit__(None, None, None)  # type: ignore[no-untyped-call]


def tap_calls(model: nn.Module, tap: CallTap) -> list[RemovableHandle]:
    """Attach a tap to a model.

    Every module is hooked: a call of one that is not would be counted as its parent's and shift what comes
    after. Quantizers alone are not: no function mode sees what they do.

    Returns:
        Handles whose `remove` takes the tap off again.
    """
    handles = []
    for owner, module in list(model.named_modules()):
        if isinstance(module, Quantizer):
            continue
        is_root = module is model
        enter, leave = _Enter(tap, owner, is_root), _Leave(tap, is_root)
        # First of all hooks: a later one may raise, and Leave then runs; it must find what Enter did.
        handles.append(module.register_forward_pre_hook(enter, prepend=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    return handles


def tap_of(model: nn.Module) -> CallTap | None:
    """The tap that `tap_calls` attached to a model, if there is one."""
    for hook in model._forward_pre_hooks.values():
        if isinstance(hook, _Enter) and hook.is_root:
            return hook.tap
    return None
