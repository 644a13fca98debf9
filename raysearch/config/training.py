"""Quantization-aware training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raysearch.config.section import Section


class TrainingConfig(Section):
    """Quantization-aware training."""

    epochs: int = Field(10, ge=0)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    scale_learning_rate: float = Field(1e-2, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    objective: Literal["auto", "loss", "distill"] = "auto"
    num_workers: int = Field(1, ge=1)
    cpus_per_worker: float = Field(1.0, gt=0)
    use_gpu: bool = False
    threads: int = Field(1, ge=1)
    max_failures: int = Field(2, ge=0)
