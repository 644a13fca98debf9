"""Gradient checkpointing of a model's repeated blocks: in training each keeps its input alone.

What a block computed is computed once more in the backward pass. Quantizers are part of that second run:
weights are quantized in it anew, and function calls are counted from the block's first one on.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import checkpoint

from raysearch.errors import ConfigError
from raysearch.hooks.call_taps import CallTap, tap_of
from raysearch.hooks.checkpoints import checkpoints_as


def checkpoint_blocks(model: nn.Module) -> tuple[str, ...]:
    """Checkpoint every repeated block of a model wherever gradients are taken of it in training.

    Blocks are the children of one class in a `ModuleList`, `ModuleDict` or `Sequential`, the outermost ones.
    One that holds a BatchNorm is left as it is: its second run would count the batch once more.

    Args:
        model: a quantized model; its blocks' forwards are replaced.

    Returns:
        The blocks' names.

    Raises:
        ConfigError: the model has no such block.
    """
    blocks = repeated_blocks(model)
    if not blocks:
        raise ConfigError(
            f"training.gradient_checkpointing is true, but {type(model).__name__} has no repeated blocks "
            f"(two children of one class in a ModuleList or Sequential, with parts of their own and without "
            f"BatchNorm); set it to false."
        )
    tap = tap_of(model)
    for name, block in blocks.items():
        # As an attribute of the block it hides the method of its class.
        block.forward = _Checkpointed(block, name, tap)
    return tuple(blocks)


def repeated_blocks(model: nn.Module, *, with_batch_norm: bool = False) -> dict[str, nn.Module]:
    """Name → block, as `checkpoint_blocks` takes them, none inside another.

    Args:
        model: whose blocks are looked for.
        with_batch_norm: whether a block may hold a BatchNorm.
    """
    blocks: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        is_inside = any(name.startswith(f"{outer}.") for outer in blocks)
        if is_inside or not isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            continue
        children = [
            (key, child) for key, child in module.named_children() if _is_block(child, with_batch_norm)
        ]
        counts = Counter(type(child) for _, child in children)
        prefix = f"{name}." if name else ""
        blocks.update({prefix + key: child for key, child in children if counts[type(child)] > 1})
    return blocks


def _is_block(module: nn.Module, with_batch_norm: bool) -> bool:
    has_parts = any(True for _ in module.children())
    trains = any(parameter.requires_grad for parameter in module.parameters())
    may_stand = with_batch_norm or not any(isinstance(part, _BatchNorm) for part in module.modules())
    return has_parts and trains and may_stand


class _Checkpointed:
    """A block's forward that keeps nothing but its arguments."""

    def __init__(self, block: nn.Module, name: str, tap: CallTap | None) -> None:
        self._forward: Callable[..., Any] = block.forward
        self._block = block
        self._name = name
        self._tap = tap

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (torch.is_grad_enabled() and self._block.training):
            return self._forward(*args, **kwargs)
        # The model's own checkpoints may be suspended; this one is torch's.
        with checkpoints_as(suspended=False) as were_suspended:

            def forward(*args: Any, **kwargs: Any) -> Any:
                with checkpoints_as(suspended=were_suspended):
                    return self._forward(*args, **kwargs)

            return checkpoint.checkpoint(
                forward, *args, use_reentrant=False, context_fn=self._contexts, **kwargs
            )

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return contextlib.nullcontext(), self._second_run()

    @contextlib.contextmanager
    def _second_run(self) -> Iterator[None]:
        """Where the block's calls are seen, although the model does not run."""
        tap = self._tap
        if tap is None:
            yield
            return
        stack = tap.stack
        tap.stack = [self._name]
        tap.start(self._name)
        try:
            with tap:
                yield
        finally:
            tap.stack = stack
