"""Global state that results depend on (generators, threads, algorithms): set for a run and put back."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every global generator, and put all of them back: a loader may draw from any of them."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    torch_state = torch.get_rng_state()
    random.seed(seed)
    # numpy takes 32 bits only.
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def pin_threads(threads: int) -> None:
    """Set torch's and numpy's threads for good, in a process that is our own."""
    torch.set_num_threads(threads)
    threadpool_limits(threads, user_api="blas")


@contextmanager
def pinned_threads(threads: int) -> Iterator[None]:
    """Set torch's and numpy's threads, on which rounding depends, and put them back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


CUBLAS_WORKSPACES = (":4096:8", ":16:8")
"""Values of CUBLAS_WORKSPACE_CONFIG with which cuBLAS sums in the same order every time."""


def set_reproducible(deterministic: bool = True) -> None:
    """Make float32 arithmetic the same in every process on the same kind of device.

    Products and convolutions are in full float32 (no TF32, no bfloat16), cuDNN takes the same algorithm
    every time, and cuBLAS sums in a fixed order. Memory that torch leaves uninitialised is not filled, as
    torch would otherwise do: that finds bugs, and costs time.

    Args:
        deterministic: whether an operation that has no deterministic implementation raises a
            `RuntimeError` that names it; False lets it run.
    """
    if os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in CUBLAS_WORKSPACES:
        # cuBLAS reads it when its first handle is made, so in a worker before anything is on the GPU.
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = CUBLAS_WORKSPACES[0]
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for place in _precision_places():
        place.fp32_precision = "ieee"
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(deterministic)


@contextmanager
def reproducible(deterministic: bool = True) -> Iterator[None]:
    """`set_reproducible` inside, everything as it was afterwards: for work in the user's process.

    Example:
        >>> with reproducible():
        ...     torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
        (True, False)
        >>> torch.are_deterministic_algorithms_enabled()
        False
    """
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    mode = torch.get_deterministic_debug_mode()
    cudnn = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    benchmark = cudnn.benchmark
    cudnn_deterministic = cudnn.deterministic
    fills_memory = memory.fill_uninitialized_memory
    places = _precision_places()
    precisions = [place.fp32_precision for place in places]
    legacy = _legacy_precision()
    set_reproducible(deterministic)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        cudnn.benchmark = benchmark
        cudnn.deterministic = cudnn_deterministic
        memory.fill_uninitialized_memory = fills_memory
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy[0])
            cudnn.allow_tf32 = legacy[1]
        for place, precision in zip(places, precisions, strict=True):
            place.fp32_precision = precision
        if workspace is None:
            del os.environ["CUBLAS_WORKSPACE_CONFIG"]
        else:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace


def _precision_places() -> list[Any]:
    """Where torch keeps the precision of float32 per kind of operation, since 2.9."""
    backends: Any = torch.backends
    if not hasattr(backends.cudnn, "conv"):
        return []
    kinds = (backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.conv, backends.mkldnn.rnn)
    return [backends.cuda.matmul, backends.mkldnn.matmul, *kinds]


def _legacy_precision() -> tuple[str, bool] | None:
    """The older switches; None where the user set the newer ones, since torch then refuses to tell."""
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None
