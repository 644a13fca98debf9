"""Quantization-aware training."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from raysearch.config.section import Section
from raysearch.errors import ConfigError

TrainingObjective = Literal["auto", "loss", "distill", "mixed"]
"""What `training.objective` may say."""

Precision = Literal["float32", "bfloat16"]
"""What `training.precision` may say."""


class TrainingConfig(Section):
    """Quantization-aware training.

    Attributes:
        epochs: passes over the training data; 0 means quantization after training only.
        steps: optimizer steps in all, in place of epochs; for data too large to be passed over whole.
        batch_size: samples in a batch and worker when the training data is a `Dataset`.
        global_batch_size: samples that an optimizer step sees over all workers, whose gradients are
            accumulated over several batches where needed; None: one batch of each worker.
        learning_rate: of AdamW for weights, biases and norms; falls to 0 along a cosine, step by step.
        scale_learning_rate: of the quantizers' scales, relative to each scale's own size.
        weight_decay: AdamW's, on parameters with two or more dimensions.
        warmup_steps: steps over which the learning rates rise to their values; below 1 a share of all steps.
        ema_decay: of a moving average of the parameters over the steps, which is validated and kept in their
            place; 0: none.
        precision: of forward and backward: "bfloat16" takes torch's autocast, with parameters, steps and
            fake quantization in float32.
        batch_norm_freeze_after: share of the training after which BatchNorm keeps its statistics; 0: it
            keeps those that training starts with, 1: never.
        batch_norm_samples: training samples over which BatchNorm's statistics are taken anew before each
            validation, and kept with the best state; 0: they run along with training.
        sync_batch_norm: whether BatchNorm takes the statistics of all workers' samples.
        patience: epochs without a better validation after which training stops; None: it never does.
        max_grad_norm: a gradient whose norm over all parameters is greater is shortened to it; None: none is.
        objective: "loss" (the task's), "distill" (the divergence to the float model), "mixed" (both), or
            "auto" (the task's loss where it has one, else "distill").
        distill_weight: weight of the divergence in "mixed"; the loss has the rest of 1.
        feature_weight: weight, beside the objective, of how far the outputs of repeated blocks are from the
            float model's: ‖h − h⁰‖² / ‖h⁰‖², a mean over blocks; 0: they are free.
        scale_freeze_after: share of the training after which the quantizers' scales stay; 1: never.
        activations_after: share of the training after which activations are quantized; before it weights
            alone are. Whatever is validated is quantized whole.
        dampening: how strongly weights are drawn to the level that they round to, which keeps them from
            swinging between two; 1: in the middle between two levels by a whole learning rate. It rises from
            0 along a cosine.
        oscillation_threshold: how often, as a share of steps, the level of a weight may turn back before the
            weight is frozen where it is most; at the start four times as often, falling along a cosine; 0:
            none is frozen.
        gradient_checkpointing: whether a repeated block keeps its input alone, and is run a second time in
            the backward pass: less memory for a third more time, and the same values.
        checkpoint_steps: steps between two checkpoints within an epoch; None: by time alone. There is one
            after every epoch as well.
        checkpoint_minutes: minutes between two checkpoints within an epoch, at most.
        loggers: where curves go besides `training.parquet`: "tensorboard", or "module:factory" of your own.
        num_workers: Ray Train workers; without `global_batch_size` the samples of a step depend on them.
        min_workers: with how many of them training goes on while the cluster has no more, growing again when
            it has; None: it waits for all.
        cpus_per_worker: CPUs a worker reserves.
        use_gpu: one GPU a worker, NCCL instead of gloo; None: where the fleet computes on GPUs.
        threads: torch threads of a worker.
        max_failures: how often Ray Train restarts a lost worker group from its last checkpoint.
    """

    epochs: int = Field(10, ge=0)
    steps: int | None = Field(None, ge=1)
    batch_size: int = Field(64, ge=1)
    global_batch_size: int | None = Field(None, ge=1)
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    scale_learning_rate: float = Field(1e-2, ge=0, allow_inf_nan=False)
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    warmup_steps: float = Field(0.0, ge=0, allow_inf_nan=False)
    max_grad_norm: float | None = Field(None, gt=0)
    ema_decay: float = Field(0.0, ge=0, lt=1)
    precision: Precision = "float32"
    batch_norm_freeze_after: float = Field(1.0, ge=0, le=1)
    batch_norm_samples: int = Field(0, ge=0)
    sync_batch_norm: bool = False
    patience: int | None = Field(None, ge=1)
    objective: TrainingObjective = "auto"
    distill_weight: float = Field(0.5, gt=0, lt=1)
    feature_weight: float = Field(0.0, ge=0, allow_inf_nan=False)
    scale_freeze_after: float = Field(1.0, ge=0, le=1)
    activations_after: float = Field(0.0, ge=0, lt=1)
    dampening: float = Field(0.0, ge=0, allow_inf_nan=False)
    oscillation_threshold: float = Field(0.0, ge=0, lt=1)
    gradient_checkpointing: bool = False
    checkpoint_steps: int | None = Field(None, ge=1)
    checkpoint_minutes: float = Field(10.0, gt=0)
    loggers: tuple[str, ...] = ()
    num_workers: int = Field(1, ge=1)
    min_workers: int | None = Field(None, ge=1)
    cpus_per_worker: float = Field(1.0, gt=0, allow_inf_nan=False)
    use_gpu: bool | None = None
    threads: int = Field(1, ge=1)
    max_failures: int = Field(2, ge=0)

    @model_validator(mode="after")
    def _check_min_workers(self) -> TrainingConfig:
        if self.min_workers is None:
            return self
        if self.min_workers > self.num_workers:
            raise ValueError(f"min_workers is {self.min_workers}, more than num_workers, {self.num_workers}")
        if self.global_batch_size is None:
            raise ValueError(
                "min_workers lets the number of workers change within a training; set global_batch_size, so "
                "that a step stays what it is"
            )
        for num_workers in range(self.min_workers, self.num_workers):
            self.share_of_one(num_workers)
        return self

    @property
    def is_off(self) -> bool:
        """Whether nothing is trained."""
        return self.epochs == 0 and self.steps is None

    def shortened(self, epochs: int, steps: int | None) -> TrainingConfig:
        """The settings of a training of another length on one worker.

        Args:
            epochs: passes over the training data.
            steps: optimizer steps in place of epochs.
        """
        length = {"epochs": epochs, "steps": steps, "patience": None, "loggers": ()}
        return self.model_copy(update={**length, "num_workers": 1, "min_workers": None})

    def share_of_one(self, num_workers: int) -> int | None:
        """Samples of an optimizer step that one of so many workers sees; None: one batch.

        Raises:
            ConfigError: the global batch cannot be divided among the workers.
        """
        if self.global_batch_size is None:
            return None
        share, rest = divmod(self.global_batch_size, num_workers)
        if rest:
            below = share * num_workers
            choices = [str(size) for size in (below, below + num_workers) if size]
            raise ConfigError(
                f"training.global_batch_size is {self.global_batch_size}, which {num_workers} workers "
                f"cannot share alike; take {' or '.join(choices)}, or another training.num_workers."
            )
        return share

    def fixed(self) -> dict[str, Any]:
        """The settings as a run's folder keeps them: runs of before there were the newer ones lack those."""
        data = self.model_dump(mode="json")
        for name in LATER:
            if getattr(self, name) == type(self).model_fields[name].default:
                del data[name]
        return data


LATER = (
    "steps",
    "global_batch_size",
    "warmup_steps",
    "max_grad_norm",
    "gradient_checkpointing",
    "checkpoint_steps",
    "checkpoint_minutes",
    "ema_decay",
    "precision",
    "batch_norm_freeze_after",
    "sync_batch_norm",
    "patience",
    "loggers",
    "min_workers",
    "batch_norm_samples",
    "distill_weight",
    "feature_weight",
    "scale_freeze_after",
    "activations_after",
    "dampening",
    "oscillation_threshold",
)
"""Settings that runs from before they existed lack."""

GROUP_AND_LIFE = (
    "loggers",
    "checkpoint_steps",
    "checkpoint_minutes",
    "num_workers",
    "min_workers",
    "cpus_per_worker",
    "use_gpu",
    "max_failures",
)
"""Settings on which no result of a training within one worker depends, as a finalist's is."""
