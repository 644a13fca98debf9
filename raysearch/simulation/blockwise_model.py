"""A worker's simulated model where it holds one block at a time: many assignments go through each block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raysearch.blockwise import OUTSIDE, BlockReplica, StoredRanges
from raysearch.blockwise.chain import Arguments
from raysearch.evaluation import DataSet, Judged, Replica
from raysearch.evaluation.batches import tensors_of
from raysearch.hooks.attach import check_weight
from raysearch.records import BitAssignment, Option, QuantizerSetup, RangeTable, Scheme
from raysearch.simulation.weight_cache import DeployedWeights


@dataclass
class _Passage:
    """One assignment on its way through the blocks.

    Attributes:
        schemes: weight → scheme.
        start: the first block that is run; the float hidden state enters it unless there is another.
        hidden: what enters the next block; None: that of the float model.
        arguments: what else the blocks are given; None: as the float model gives it.
    """

    schemes: Mapping[str, Scheme]
    start: int
    hidden: Tensor | None = None
    arguments: Sequence[Arguments] | None = None


class _FloatWeights(Mapping[str, Tensor]):
    """The float weights of a replica by name, each read with its part."""

    def __init__(self, replica: BlockReplica, names: Sequence[str]) -> None:
        self._replica = replica
        self._names = tuple(names)

    def __getitem__(self, name: str) -> Tensor:
        return self._replica.weight(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class BlockwiseModel:
    """What `SimulatedModel` is, for a replica of one part at a time and weights alone.

    Several assignments go through a block while it is there, each by calls of its own, so that the outputs
    are those of whole forwards to the last bit. The float hidden states come from the replica's files.

    Memory: one part with the ranges and codes of its weights, the quantized weights of one assignment in it,
    and a hidden state an assignment.

    Args:
        replica: the worker's.
        setup: points and groups.
        ranges: calibrated ranges.

    Raises:
        PlacementError: the setup belongs to another model.
    """

    def __init__(self, replica: BlockReplica, setup: QuantizerSetup, ranges: RangeTable) -> None:
        self._replica = replica
        self._chain = replica.chain
        self._setup = setup
        self._ranges = ranges
        self._sites: dict[str, list[tuple[nn.Module, str]]] = {}
        for name, point in setup.of_kind("weight").items():
            check_weight(replica.model, point)
            places = [(replica.model.get_submodule(site.module), site.name) for site in point.sites]
            self._sites[name] = places
        self._float_weights = _FloatWeights(replica, tuple(self._sites))
        self._deployed: dict[int, DeployedWeights] = {}
        self._recorded: tuple[DataSet, int] | None = None
        self._last_states: dict[str, Tensor] = {}

    def record(self, replica: Replica, options: Sequence[Option], data: DataSet, index: int) -> None:
        """Take options through all blocks of a shard and keep what the last one gives of each.

        Args:
            replica: the worker's.
            options: those of the unit at hand.
            data: the data set.
            index: of the shard.
        """
        # First of all, so that the states of two units are never held at once.
        self._recorded, self._last_states = None, {}
        assignments = [BitAssignment(dict([option])) for option in options]
        passages = [self._entered(assignment, data, index) for assignment in assignments]
        states = self._through_blocks(passages, data, index)
        self._recorded = (data, index)
        self._last_states = {
            assignment.digest(): state for assignment, state in zip(assignments, states, strict=True)
        }

    def later_outputs(self, replica: Replica, assignment: BitAssignment, data: DataSet, index: int) -> Judged:
        """The same as `outputs`, from what was recorded where there is any.

        Args:
            replica: the worker's.
            assignment: groups that are not named are float.
            data: the data set.
            index: of the shard.
        """
        hidden = None
        if self._recorded == (data, index):
            hidden = self._last_states.get(assignment.digest())
        if hidden is None:
            return self.outputs(replica, assignment, data, index)
        schemes = assignment.per_point(self._setup)
        with self._quantized(OUTSIDE, schemes):
            return self._replica.judged(data, index, hidden)

    def outputs(self, replica: Replica, assignment: BitAssignment, data: DataSet, index: int) -> Judged:
        """Judged outputs under an assignment on one shard, by all blocks from the first to the last.

        Args:
            replica: the worker's.
            assignment: groups that are not named are float.
            data: the data set.
            index: of the shard.

        Raises:
            PlacementError: a group is unknown, or a width is not one of its own.
        """
        outputs = self.raw_outputs(replica, assignment, data, index)
        return replica.divergence.judged(outputs, replica.shard(data, index))

    def raw_outputs(self, replica: Replica, assignment: BitAssignment, data: DataSet, index: int) -> Any:
        """What the model gives under an assignment on one shard; arguments as those of `outputs`."""
        passage = self._entered(assignment, data, index)
        # All blocks are run, those before the first change too: what others leave out is checked by this.
        passage.start = 0
        (hidden,) = self._through_blocks([passage], data, index)
        with self._quantized(OUTSIDE, passage.schemes):
            return self._replica.leave(data, index, hidden)

    def depth(self, option: Option) -> int:
        """How late an option first acts: its block, by number."""
        return self._start(self._setup.groups[option[0]].points)

    def _entered(self, assignment: BitAssignment, data: DataSet, index: int) -> _Passage:
        """An assignment in front of the first block that it changes."""
        assignment.check_named(self._setup)
        schemes = assignment.per_point(self._setup)
        passage = _Passage(schemes, self._start(schemes))
        if all(self._chain.part_of(name) != OUTSIDE for name in schemes):
            return passage
        with self._quantized(OUTSIDE, schemes):
            entered = self._replica.enter(data, index)
        # A head is read behind the blocks: what enters them is then that of the float model.
        is_float = torch.equal(entered.hidden, self._replica.state(data, index, 0)) and _same_tensors(
            entered.arguments, self._replica.arguments(data, index)
        )
        if not is_float:
            passage.start, passage.hidden, passage.arguments = 0, entered.hidden, entered.arguments
        return passage

    def _start(self, points: Sequence[str] | Mapping[str, Scheme]) -> int:
        """The first block that one of these weights lies in; behind the last one where none does."""
        parts = [self._chain.part_of(name) for name in points]
        return min((part for part in parts if part != OUTSIDE), default=len(self._chain.blocks))

    def _through_blocks(self, passages: Sequence[_Passage], data: DataSet, index: int) -> list[Tensor]:
        """What the last block gives under each of these assignments."""
        replica = self._replica
        of_float = replica.arguments(data, index)
        last = len(self._chain.blocks)
        for block in range(last):
            running = [passage for passage in passages if passage.start <= block]
            if not running:
                continue
            replica.use(block)
            for passage in running:
                arguments = of_float if passage.arguments is None else passage.arguments
                hidden = passage.hidden
                if hidden is None:
                    hidden = replica.state(data, index, block)
                with self._quantized(block, passage.schemes):
                    passage.hidden = replica.run_block(block, hidden, arguments[block])
        states = []
        for passage in passages:
            states.append(replica.state(data, index, last) if passage.hidden is None else passage.hidden)
        return states

    def _deployed_of(self, part: int) -> DeployedWeights:
        """Makes the quantized weights of a part; that of the part before is dropped, with its ranges."""
        if part not in self._deployed:
            self._deployed.clear()
            ranges = self._ranges
            if isinstance(ranges, StoredRanges):
                ranges = ranges.of_part(part)
            self._deployed[part] = DeployedWeights(self._float_weights, self._setup, ranges)
        return self._deployed[part]

    @contextmanager
    def _quantized(self, part: int, schemes: Mapping[str, Scheme]) -> Iterator[None]:
        """A part in use, its weights at their schemes; afterwards they are float again."""
        self._replica.use(part)
        deployed = self._deployed_of(part)
        names = [name for name in schemes if self._chain.part_of(name) == part]
        places = [place for name in names for place in self._sites[name]]
        before = [(module, key, module._parameters[key]) for module, key in places]
        try:
            for name in names:
                quantized = nn.Parameter(deployed.make(name, schemes[name]), requires_grad=False)
                for module, key in self._sites[name]:
                    # Past `setattr`, which would register the parameter anew.
                    module._parameters[key] = quantized
            yield
        finally:
            for module, key, weight in before:
                module._parameters[key] = weight


def _same_tensors(one: Any, other: Any) -> bool:
    pairs = zip(tensors_of(one), tensors_of(other), strict=True)
    return all(torch.equal(a, b) for (_, a), (_, b) in pairs)
