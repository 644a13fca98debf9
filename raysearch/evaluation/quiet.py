"""PyTorch's capture and export, silenced: what fails there is told in an error of our own."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = (
    "torch.export",
    "torch._export",
    "torch.onnx",
    "torch.__trace",
    "torch.fx.experimental.symbolic_shapes",
    "torch._subclasses.fake_tensor",
)


ALLOCATIONS = 50_000
"""Python objects between two collections of garbage while a graph is captured."""


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Let Python look for garbage less often: a capture makes objects by the million, and keeps most of them.

    Where the process has it switched off, or rarer still, it stays so.
    """
    before = gc.get_threshold()
    if 0 < before[0] < ALLOCATIONS:
        gc.set_threshold(ALLOCATIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings, graphs and tracebacks that PyTorch prints while it captures a model to itself."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings(), seldom_collected():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
