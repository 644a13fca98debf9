"""Quantization-aware training: the step in plain PyTorch, and its launch on Ray Train."""

from raysearch.training.fine_tune import fine_tune, forget_checkpoints, load_checkpoint
from raysearch.training.recipe import Recipe

__all__ = ["Recipe", "fine_tune", "forget_checkpoints", "load_checkpoint"]
