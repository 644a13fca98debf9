"""What a measured time depends on besides the model: the CPU, its instructions, threads, inputs."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree


def describe_machine(inputs: tuple[Any, ...], batch: int, threads: int) -> dict[str, str]:
    """What times depend on besides the model.

    Args:
        inputs: positional arguments of the model.
        batch: their number of samples.
        threads: of the runtime.
    """
    shapes = [list(t.shape) for t in pytree.tree_leaves(inputs) if isinstance(t, torch.Tensor)]
    return {
        "cpu": _cpu_field("model name") or platform.processor() or platform.machine(),
        "instructions": integer_instructions(),
        "threads": str(threads),
        "batch": str(batch),
        "inputs": ", ".join("x".join(map(str, shape)) for shape in shapes),
    }


def integer_instructions() -> str:
    """Whether the CPU multiplies 8-bit integers in fours (VNNI); without, integer kernels gain less."""
    flags = _cpu_field("flags").split()
    if not flags:
        return f"{platform.machine()}, VNNI unknown"
    wide = next((name for name in ("avx512f", "avx2", "avx") if name in flags), platform.machine())
    return f"{wide}, {'with' if any('vnni' in flag for flag in flags) else 'without'} VNNI"


def _cpu_field(name: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")
