"""What a forward changes on its model besides the result: seen, and put back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from operator import is_not
from typing import Any

import torch
from torch import Tensor, nn

CHANGING = "_raysearch_changing_buffers"
"""Attribute of a model of raysearch's own: names of the buffers that its forward changes in eval mode too."""

TORCH_NAMES = frozenset(vars(nn.Module()))
"""Attributes that torch gives every module, its dictionaries of parameters and hooks among them."""

_CONTAINERS = (list, dict, set, deque)


def changing_buffers(model: nn.Module) -> tuple[str, ...]:
    """Names of the buffers that a model's forward changes in eval mode too, as far as it was tried."""
    names: tuple[str, ...] = vars(model).get(CHANGING, ())
    return names


@contextmanager
def state_as_found(model: nn.Module) -> Iterator[None]:
    """Put back what a forward, or a capture of it, leaves on a model.

    That is every attribute, parameter, buffer and submodule by identity, what plain containers among the
    attributes hold, and the values of `changing_buffers`. Values that are changed in place elsewhere are not
    seen: to keep a copy of all of them would cost a model. Hooks that are put on meanwhile stay, and so does
    what a recorder of ours keeps in an object of its own.
    """
    modules = list(model.modules())
    slots = [slot for module in modules for slot in _slots(module)]
    before = [slot.copy() for slot in slots]
    contents = [(value, value.copy()) for module in modules for value in _containers(module)]
    named = dict(model.named_buffers()) if changing_buffers(model) else {}
    values = [(named[name], named[name].clone()) for name in changing_buffers(model) if name in named]
    try:
        yield
    finally:
        for slot, earlier in zip(slots, before, strict=True):
            if slot.keys() != earlier.keys() or any(map(is_not, slot.values(), earlier.values())):
                slot.clear()
                slot.update(earlier)
        for container, content in contents:
            _refill(container, content)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)


def find_changing_buffers(model: nn.Module, run: Any) -> tuple[str, ...]:
    """Run a model once, keep what it made for itself, and put back the buffers that it changed.

    A buffer, a parameter or an attribute that is made on the first call stays: a model that has been run
    has it. So does a buffer that was made anew in another shape, as caches are.

    Args:
        model: a model of our own, in eval mode.
        run: runs it.

    Returns:
        Names of the buffers whose values the run changed.
    """
    before = [
        (name, module, key, buffer, buffer.clone())
        for prefix, module in model.named_modules()
        for key, buffer in module._buffers.items()
        if buffer is not None
        for name in [f"{prefix}.{key}" if prefix else key]
    ]
    run()
    changed: list[str] = []
    with torch.no_grad():
        for name, module, key, buffer, value in before:
            present = module._buffers.get(key)
            if present is None or not _same_form(present, value):
                continue
            if present is not buffer or not torch.equal(buffer, value):
                buffer.copy_(value)
                module._buffers[key] = buffer
                changed.append(name)
    return tuple(changed)


def _same_form(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device


def _slots(module: nn.Module) -> Iterator[dict[str, Any]]:
    """The dictionaries that hold what a module has; its own attributes last, since they name the others."""
    yield module._parameters
    yield module._buffers
    yield module._modules
    yield vars(module)


def _containers(module: nn.Module) -> Iterator[Any]:
    for name, value in vars(module).items():
        if name not in TORCH_NAMES and isinstance(value, _CONTAINERS):
            yield value


def _refill(container: Any, content: Any) -> None:
    if isinstance(container, list):
        container[:] = content
        return
    container.clear()
    if isinstance(container, deque):
        container.extend(content)
    else:
        container.update(content)
