"""Global state that results depend on (generators, threads, algorithms): set for a run and put back."""

from __future__ import annotations

import os
import random
import sys
import warnings
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
    seed_torch(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch_states.restore()


def seed_torch(seed: int) -> None:
    """Seed torch's generators; where it knows no accelerator, the CPU's alone.

    `torch.manual_seed` formats a stack for every kind of accelerator that is not in use, which takes longer
    than a step of a small net.
    """
    if torch.accelerator.current_accelerator() is None:
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


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


@contextmanager
def plain_modes() -> Iterator[None]:
    """Torch's modes as every process of a run has them, and as they were afterwards.

    Gradients on, no inference mode, float32 and the CPU where nothing else is said, no autocast, no anomaly
    detection: a script that a task comes from may have set any of them, and workers would not know it.
    """
    # Of torch's own functions each sets one mode for good; as contexts they would cost every call.
    dtype = torch.get_default_dtype()
    device = torch.get_default_device()
    autocast = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    torch.set_default_dtype(torch.float32)
    if device.type != "cpu":
        torch.set_default_device(None)
    for kind in autocast:
        torch.set_autocast_enabled(kind, False)
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autograd.set_detect_anomaly(False),
        ):
            yield
    finally:
        for kind in autocast:
            torch.set_autocast_enabled(kind, True)
        if device.type != "cpu":
            torch.set_default_device(device)
        torch.set_default_dtype(dtype)


@contextmanager
def process_as_found() -> Iterator[None]:
    """Put back what a task file may set for its whole process while it is imported, or its code later.

    That is torch's modes and threads, the filters of warnings, the folders that modules are looked for in,
    and the working folder.
    """
    dtype = torch.get_default_dtype()
    device = torch.get_default_device()
    grad = torch.is_grad_enabled()
    inference = torch.is_inference_mode_enabled()
    anomaly = (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled())
    autocast = {kind: torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")}
    threads = torch.get_num_threads()
    path = list(sys.path)
    folder = os.getcwd()
    try:
        with warnings.catch_warnings(), torch.inference_mode(inference), torch.set_grad_enabled(grad):
            yield
    finally:
        os.chdir(folder)
        sys.path[:] = path
        torch.set_num_threads(threads)
        for kind, is_enabled in autocast.items():
            torch.set_autocast_enabled(kind, is_enabled)
        torch.autograd.set_detect_anomaly(*anomaly)
        if torch.get_default_device() != device:
            torch.set_default_device(device)
        torch.set_default_dtype(dtype)


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
