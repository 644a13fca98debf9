"""Quantization-aware training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raysearch.config.section import Section

TrainingObjective = Literal["auto", "loss", "distill"]
"""What `training.objective` may say."""


class TrainingConfig(Section):
    """Quantization-aware training.

    Attributes:
        epochs: passes over the training data; 0 means quantization after training only.
        batch_size: samples in a batch and worker when the training data is a `Dataset`.
        learning_rate: of AdamW for weights, biases and norms; falls to 0 along a cosine.
        scale_learning_rate: of the quantizers' scales, relative to each scale's own size.
        weight_decay: AdamW's, on parameters with two or more dimensions.
        objective: "loss" (the task's), "distill" (the divergence to the float model), or "auto" (the
            task's loss where it has one, else "distill").
        gradient_checkpointing: whether a repeated block keeps its input alone, and is run a second time in
            the backward pass: less memory for a third more time, and the same values.
        num_workers: Ray Train workers; fixed for the run, since the global batch depends on it.
        cpus_per_worker: CPUs a worker reserves.
        use_gpu: one GPU a worker, NCCL instead of gloo; None: where the fleet computes on GPUs.
        threads: torch threads of a worker.
        max_failures: how often Ray Train restarts a lost worker group from its last checkpoint.
    """

    epochs: int = Field(10, ge=0)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    scale_learning_rate: float = Field(1e-2, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    objective: TrainingObjective = "auto"
    gradient_checkpointing: bool = False
    num_workers: int = Field(1, ge=1)
    cpus_per_worker: float = Field(1.0, gt=0)
    use_gpu: bool | None = None
    threads: int = Field(1, ge=1)
    max_failures: int = Field(2, ge=0)
