"""What one worker holds: the float model, the shards, and how to run and judge them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raysearch.evaluation.batches import Batch, map_tensors
from raysearch.evaluation.data_set import DataSet, shard_name
from raysearch.evaluation.forward import Forward, Loss, frozen_eval
from raysearch.evaluation.half_precision import widened_model
from raysearch.evaluation.joint_divergence import Objective
from raysearch.evaluation.microbatch import MicrobatchState, run_in_microbatches
from raysearch.evaluation.model.model_source import ModelSource
from raysearch.evaluation.outputs import Judged
from raysearch.evaluation.positions import counted
from raysearch.evaluation.worker_cache import WorkerCache


@dataclass
class Replica:
    """A private copy of the float model with its data; shipped to each worker once.

    It takes its place on the worker's device when it is unpacked there, or by `place`: the driver that
    makes it may have no GPU. A model in half precision is computed in float32, and widened there too, so that
    no more than its own bytes are shipped.

    Attributes:
        model: the float model, in eval mode.
        forward: (model, batch) → outputs.
        shards: data set → its shards, the same on every worker.
        divergence: the label-free objective.
        loss: (outputs, batch) → scalar, or None for label-free.
        device: where the worker computes: "cpu", "cuda", or "auto" (CUDA where there is one).
        source: makes the model where the replica is unpacked; None: the model is shipped.
        cache: what is kept between units; never shipped.
    """

    model: nn.Module
    forward: Forward
    shards: Mapping[DataSet, list[Batch]]
    divergence: Objective
    loss: Loss | None = None
    device: str = "cpu"
    source: ModelSource | None = None
    cache: WorkerCache = field(default_factory=WorkerCache)

    def __post_init__(self) -> None:
        self.model.eval()

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "cache": WorkerCache()}
        if self.source is not None:
            del state["model"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.source is not None:
            self.model = self.source.make().eval()
        self.place()

    def place(self) -> Replica:
        """Move the model to the device, in float32 at least; "auto" is decided here."""
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(self.device)
        widened_model(self.model)
        return self

    def weight(self, name: str) -> Tensor:
        """A float weight by the name of its parameter."""
        return self.model.get_parameter(name).detach()

    def shard(self, data: DataSet, index: int) -> Batch:
        """One shard on the worker's device."""
        return map_tensors(self.shards[data][index], lambda tensor: tensor.to(self.device))

    def microbatches(self, work: str) -> MicrobatchState:
        """How many samples fit this worker's memory at once, for one kind of work ("forward", …)."""
        return self.cache.microbatches.setdefault(work, MicrobatchState())

    def run(self, model: nn.Module, batch: Batch, name: str = "a batch") -> Judged:
        """The judged output of a model on a batch, without gradient.

        A batch that does not fit in memory is run in pieces, see `run_in_microbatches`.

        Args:
            model: the float model, or a quantized one.
            batch: on the worker's device.
            name: what messages call the batch, see `shard_name`.

        Raises:
            UnitError: one sample alone does not fit; the message names the batch.
        """

        def judged(part: Batch) -> Judged:
            return self.divergence.judged(self.forward(model, part), part)

        with frozen_eval(model), torch.no_grad():
            return run_in_microbatches(judged, batch, self.microbatches("forward"), name=name)

    def counted(self, batch: Batch) -> Tensor | None:
        """Which positions of a batch count, bool [N, …]; None: all."""
        positions = self.divergence.positions
        return None if positions is None else counted(batch, positions)

    def float_outputs(self, data: DataSet, index: int) -> Judged:
        """The float model's output on a shard; once per worker and shard while all fit in 256 MiB."""
        by_shard = self.cache.float_outputs.by_shard
        if (data, index) not in by_shard:
            outputs = self.run(self.model, self.shard(data, index), shard_name(data, index))
            self.cache.float_outputs.keep(data, index, outputs)
        return by_shard[data, index]
