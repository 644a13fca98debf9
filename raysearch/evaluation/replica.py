"""What one worker holds: the float model, the shards, and how to run and judge them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raysearch.evaluation.batches import Batch, map_tensors
from raysearch.evaluation.divergence import Divergence
from raysearch.evaluation.forward import Forward, Loss, frozen_eval, output_tensor
from raysearch.evaluation.microbatch import MicrobatchState, run_in_microbatches

FLOAT_OUTPUTS_BYTES = 2**28
"""Float outputs that a worker keeps at once, beyond those of a single shard."""


@dataclass
class Replica:
    """A private copy of the float model with its data; shipped to each worker once.

    It takes its place on the worker's device when it is unpacked there, or by `place`: the driver that
    makes it may have no GPU.

    Attributes:
        model: the float model, in eval mode.
        forward: (model, batch) → outputs.
        shards: name of a data set → its shards, the same on every worker.
        divergence: the label-free objective.
        loss: (outputs, batch) → scalar, or None for label-free.
        device: where the worker computes: "cpu", "cuda", or "auto" (CUDA where there is one).
        cache: what a stage keeps between units, keyed by the stage; never shipped.
    """

    model: nn.Module
    forward: Forward
    shards: Mapping[str, list[Batch]]
    divergence: Divergence
    loss: Loss | None = None
    device: str = "cpu"
    cache: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model.eval()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "cache": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.place()

    def place(self) -> Replica:
        """Move the model to the device; "auto" is decided here."""
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(self.device)
        return self

    def shard(self, data: str, index: int) -> Batch:
        """One shard on the worker's device."""
        # A unit works on one shard at a time, so an error below is about the last one that was asked for.
        self.cache["shard"] = f"shard {index} of the {data} data"
        return map_tensors(self.shards[data][index], lambda tensor: tensor.to(self.device))

    def microbatches(self, work: str) -> MicrobatchState:
        """How many samples fit this worker's memory at once, for one kind of work ("forward", …)."""
        sizes: dict[str, MicrobatchState] = self.cache.setdefault("microbatches", {})
        return sizes.setdefault(work, MicrobatchState())

    def run(self, model: nn.Module, batch: Batch) -> Tensor:
        """The judged output of a model on a batch, without gradient.

        A batch that does not fit in memory is run in pieces, see `run_in_microbatches`.

        Raises:
            UnitError: one sample alone does not fit; the message names the shard.
        """

        def judged(part: Batch) -> Tensor:
            return output_tensor(self.forward(model, part))

        with frozen_eval(model), torch.no_grad():
            name = self.cache.get("shard", "a batch")
            return run_in_microbatches(judged, batch, self.microbatches("forward"), name=name)

    def float_outputs(self, data: str, index: int) -> Tensor:
        """The float model's output on a shard; once per worker and shard while all fit in 256 MiB."""
        if (data, index) not in self._known_outputs():
            self.keep_float_outputs(data, index, self.run(self.model, self.shard(data, index)))
        return self._known_outputs()[data, index]

    def keep_float_outputs(self, data: str, index: int, found: Tensor) -> None:
        """Take what another forward of the float model gave on a shard."""
        known = self._known_outputs()
        # Units come shard by shard, so of large outputs the last shard's are enough.
        if sum(entry.nbytes for entry in (found, *known.values())) > FLOAT_OUTPUTS_BYTES:
            known.clear()
        known.setdefault((data, index), found)

    def _known_outputs(self) -> dict[tuple[str, int], Tensor]:
        known: dict[tuple[str, int], Tensor] = self.cache.setdefault("float_outputs", {})
        return known
