"""Hashes of what a run was started with, by which a resumed run knows that nothing changed."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from hashlib import blake2b
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from raysearch.evaluation import Batch
from raysearch.evaluation.batches import tensors_of

PACKAGES = ("raysearch", "torch", "ray", "optuna", "numpy")
"""Packages whose versions a run's folder states."""


def versions() -> dict[str, str]:
    """What a result depends on besides its inputs: the versions of Python and of the packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def hash_model(model: nn.Module) -> str:
    """Hash of every parameter and buffer with its name, and of the class's name."""
    digest = blake2b(type(model).__name__.encode(), digest_size=16)
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            _add_tensor(digest, name, value)
    return digest.hexdigest()


def hash_batches(batches: Sequence[Batch]) -> str:
    """Hash of every tensor of every shard with its place."""
    digest = blake2b(digest_size=16)
    for index, batch in enumerate(batches):
        for path, tensor in tensors_of(batch):
            _add_tensor(digest, f"{index}:{path}", tensor)
    return digest.hexdigest()


def _add_tensor(digest: Any, name: str, tensor: torch.Tensor) -> None:
    digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # A view of bytes needs at least one element to be taken of.
    if flat.numel():
        digest.update(flat.view(torch.uint8).numpy().tobytes())
