"""Hashes of a model's weights and of tensors."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import torch
from torch import nn


def hash_model(model: nn.Module) -> str:
    """Hash of every parameter and buffer with its name, and of the class's name."""
    digest = blake2b(type(model).__name__.encode(), digest_size=16)
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            add_tensor(digest, name, value)
    return digest.hexdigest()


def add_tensor(digest: Any, name: str, tensor: torch.Tensor) -> None:
    """Let a tensor with its name, type and shape count in a hash."""
    digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # A view of bytes needs at least one element to be taken of.
    if flat.numel():
        digest.update(flat.view(torch.uint8).numpy())
