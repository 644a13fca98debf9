"""Activation checkpointing, switched off while quantizers reach functions.

A checkpoint runs its function a second time in the backward pass, when the mode that counts calls is not
active: the additions and products in it would come out float, and torch refuses a second run that differs.
A function that keeps its activations gives the same values and takes more memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils import checkpoint

# What `checkpoint.checkpoint` looks up when it is called, wherever it was imported to; both its variants.
_REENTRANT = "CheckpointFunction"
_OTHER = "_checkpoint_without_reentrant_generator"
_TORCH = {name: getattr(checkpoint, name) for name in (_REENTRANT, _OTHER)}


class _RunOnce:
    """In place of the autograd function of reentrant checkpoints."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)


def _keep_everything(*args: Any, **kwargs: Any) -> Iterator[None]:
    yield


def suspend_checkpoints() -> None:
    """From now on a checkpointed function is run as any other."""
    setattr(checkpoint, _REENTRANT, _RunOnce)
    setattr(checkpoint, _OTHER, _keep_everything)


def resume_checkpoints() -> None:
    """Checkpoints are torch's own again."""
    for name, value in _TORCH.items():
        setattr(checkpoint, name, value)


@contextlib.contextmanager
def checkpoints_as(suspended: bool) -> Iterator[bool]:
    """Suspend checkpoints, or let them be torch's own, for a while.

    Yields:
        Whether they were suspended before, as they are again afterwards.
    """
    were_suspended = getattr(checkpoint, _OTHER) is _keep_everything
    (suspend_checkpoints if suspended else resume_checkpoints)()
    try:
        yield were_suspended
    finally:
        (suspend_checkpoints if were_suspended else resume_checkpoints)()
