"""Global state that results depend on (generators, threads, algorithms): set for a run and put back."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor


@dataclass(frozen=True)
class GeneratorStates:
    """The states of torch's global generators: of the CPU, and of every GPU where this process uses one.

    Attributes:
        cpu: the CPU's.
        gpus: one a GPU, in their order; empty where CUDA has not been used.
    """

    cpu: Tensor
    gpus: tuple[Tensor, ...] = ()

    @classmethod
    def now(cls) -> GeneratorStates:
        """The states as they are."""
        # Asked for only where CUDA is in use: the question itself would start it, which takes memory.
        is_used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        gpus = tuple(torch.cuda.get_rng_state_all()) if is_used else ()
        return cls(torch.get_rng_state(), gpus)

    def restore(self) -> None:
        """Put the generators back to these states."""
        torch.set_rng_state(self.cpu)
        if self.gpus:
            torch.cuda.set_rng_state_all(self.gpus)

    def are_now(self) -> bool:
        """Whether nothing was drawn since."""
        present = GeneratorStates.now()
        pairs = zip((self.cpu, *self.gpus), (present.cpu, *present.gpus), strict=False)
        return all(torch.equal(one, other) for one, other in pairs)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every global generator, and put all of them back: a loader may draw from any of them."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    torch_states = GeneratorStates.now()
    random.seed(seed)
    # numpy takes 32 bits only.
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch_states.restore()


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


def set_reproducible(deterministic: bool = True, *, warn_only: bool = False) -> None:
    """Make float32 arithmetic the same in every process on the same kind of device.

    Products and convolutions are in full float32 (no TF32, no bfloat16), cuDNN takes the same algorithm
    every time, and cuBLAS sums in a fixed order. Memory that torch leaves uninitialised is not filled, as
    torch would otherwise do: that finds bugs, and costs time.

    Args:
        deterministic: whether an operation that has no deterministic implementation raises a
            `RuntimeError` that names it; False lets it run.
        warn_only: warn of such an operation, and let it run.
    """
    if os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in CUBLAS_WORKSPACES:
        # torch reads it at its first product on a GPU, and never again: importing raysearch sets it.
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = CUBLAS_WORKSPACES[0]
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for place in _precision_places():
        place.fp32_precision = "ieee"
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@contextmanager
def reproducible(deterministic: bool = True, *, warn_only: bool = False) -> Iterator[None]:
    """`set_reproducible` inside, everything as it was afterwards: for work in the user's process.

    Args:
        deterministic: see `set_reproducible`.
        warn_only: see `set_reproducible`.

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
    set_reproducible(deterministic, warn_only=warn_only)
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
