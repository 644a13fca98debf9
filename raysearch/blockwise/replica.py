"""A worker's replica of which one part has weights at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raysearch.blockwise.chain import OUTSIDE, Arguments, Chain
from raysearch.blockwise.files import BlockFiles
from raysearch.blockwise.running import Entered, enter, leave, run_block
from raysearch.evaluation import DataSet, Judged, Replica
from raysearch.evaluation.batches import map_tensors
from raysearch.evaluation.forward import frozen_eval
from raysearch.evaluation.half_precision import HALF
from raysearch.evaluation.model.copies import private_copy
from raysearch.freed_memory import return_freed


def without_weights(model: nn.Module) -> nn.Module:
    """A copy of a model whose parameters have shapes and no values; buffers are copied."""
    memo: dict[int, Any] = {id(parameter): _empty(parameter) for parameter in model.parameters()}
    return private_copy(model, memo)


def _empty(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)


@dataclass
class _Resident:
    """The part that has weights; see `WorkerCache.of`.

    Attributes:
        part: its number; None: none has.
        weights: its float weights by their first names, on the worker's device.
    """

    part: int | None = None
    weights: dict[str, nn.Parameter] = field(default_factory=dict)


@dataclass(kw_only=True)
class BlockReplica(Replica):
    """A replica that holds the weights of one part: a block, or what lies outside of the blocks.

    A part is read from the files when it is used, and the one before it is dropped. Half precision is widened
    then, as everything is measured in float32.

    Attributes:
        chain: the blocks of the model, whose parameters have no values by themselves.
        files: weights, and hidden states of the float model.
    """

    chain: Chain
    files: BlockFiles

    def __post_init__(self) -> None:
        super().__post_init__()
        # A tied parameter stands at several places under several names, and is stored under the first.
        self._places: dict[str, list[tuple[nn.Module, str]]] = {}
        self._first_names: dict[str, str] = {}
        first: dict[int, str] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            module, _, key = name.rpartition(".")
            self._first_names[name] = first.setdefault(id(parameter), name)
            places = self._places.setdefault(self._first_names[name], [])
            places.append((self.model.get_submodule(module), key))

    def place(self) -> Replica:
        """Decide where to compute, and move the buffers there; weights come when they are used."""
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(self.device)
        return self

    def weight(self, name: str) -> Tensor:
        """A float weight: of the part in use, or read by itself."""
        first, resident = self._first_names[name], self.cache.of(_Resident)
        if first in resident.weights:
            return resident.weights[first].detach()
        return self._read(first).detach()

    def use(self, part: int) -> None:
        """Give a part its float weights, and take those of the part before."""
        resident = self.cache.of(_Resident)
        if resident.part == part:
            return
        self._put({name: _empty(weight) for name, weight in resident.weights.items()})
        # Before the next are read: two parts at once are what a worker has no room for.
        resident.part, resident.weights = None, {}
        return_freed()
        weights = {name: self._read(name) for name in self._places if self.chain.part_of(name) == part}
        self._put(weights)
        resident.part, resident.weights = part, weights

    def enter(self, data: DataSet, index: int) -> Entered:
        """What enters the first block on a shard, by the weights that are in force outside of the blocks."""
        batch = self.shard(data, index)
        with frozen_eval(self.model):
            return enter(self.model, self.chain, lambda: self.forward(self.model, batch))

    def run_block(self, block: int, hidden: Tensor, arguments: Arguments) -> Tensor:
        """What a block makes of a hidden state, by the weights that are in force in it.

        Args:
            block: its number.
            hidden: what enters it.
            arguments: what else it is given.
        """
        with frozen_eval(self.model.get_submodule(self.chain.blocks[block])):
            return run_block(self.model, self.chain, block, hidden, arguments)

    def leave(self, data: DataSet, index: int, hidden: Tensor) -> Any:
        """The model's outputs on a shard, given what its last block gave.

        Args:
            data: the data set.
            index: the shard.
            hidden: the hidden state behind the last block.
        """
        batch = self.shard(data, index)
        with frozen_eval(self.model):
            return leave(self.model, self.chain, lambda: self.forward(self.model, batch), hidden)

    def state(self, data: DataSet, index: int, passed: int) -> Tensor:
        """The float model's hidden state on a shard behind so many blocks.

        Args:
            data: the data set.
            index: the shard.
            passed: blocks that it is behind.
        """
        return self.files.read_state(data, index, passed).clone().to(self.device)

    def arguments(self, data: DataSet, index: int) -> list[Arguments]:
        """What else the blocks are given on a shard."""
        stored = self.files.read_arguments(data, index)
        moved: list[Arguments] = map_tensors(stored, lambda tensor: tensor.to(self.device))
        return moved

    def judged(self, data: DataSet, index: int, hidden: Tensor) -> Judged:
        """The judged output on a shard, given the hidden state behind the last block.

        Args:
            data: the data set.
            index: the shard.
            hidden: the hidden state.
        """
        return self.divergence.judged(self.leave(data, index, hidden), self.shard(data, index))

    def float_outputs(self, data: DataSet, index: int) -> Judged:
        """See `Replica.float_outputs`; made of the hidden state behind the last block."""
        by_shard = self.cache.float_outputs.by_shard
        if (data, index) not in by_shard:
            self.use(OUTSIDE)
            outputs = self.judged(data, index, self.state(data, index, len(self.chain.blocks)))
            self.cache.float_outputs.keep(data, index, outputs)
        return by_shard[data, index]

    def _read(self, name: str) -> nn.Parameter:
        # Into memory of torch's own, whose alignment products may depend on.
        weight = self.files.read_weight(name).clone()
        wide = weight.float() if weight.dtype in HALF else weight
        return nn.Parameter(wide.to(self.device), requires_grad=False)

    def _put(self, weights: dict[str, nn.Parameter]) -> None:
        for name, weight in weights.items():
            for module, key in self._places[name]:
                # Past `setattr`, which would register the parameter anew.
                module._parameters[key] = weight
