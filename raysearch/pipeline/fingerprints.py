"""Hashes of what a run was started with, by which a resumed run knows that nothing changed."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from hashlib import blake2b
from importlib.metadata import version

from raysearch.evaluation import Batch
from raysearch.evaluation.batches import tensors_of
from raysearch.evaluation.model.model_hash import add_tensor

PACKAGES = ("raysearch", "torch", "ray", "optuna", "numpy")
"""Packages whose versions a run's folder states."""


def versions() -> dict[str, str]:
    """What a result depends on besides its inputs: the versions of Python and of the packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def hash_batches(batches: Sequence[Batch]) -> str:
    """Hash of every tensor of every shard with its place."""
    digest = blake2b(digest_size=16)
    for index, batch in enumerate(batches):
        for path, tensor in tensors_of(batch):
            add_tensor(digest, f"{index}:{path}", tensor)
    return digest.hexdigest()
