"""Quantization-aware training: the step in plain PyTorch, and its launch on Ray Train."""

from raysearch.training.finalists import Start, train_finalists
from raysearch.training.fine_tune import fine_tune, forget_checkpoints, load_checkpoint
from raysearch.training.recipe import Recipe

__all__ = [
    "Recipe",
    "Start",
    "fine_tune",
    "forget_checkpoints",
    "load_checkpoint",
    "train_finalists",
]
