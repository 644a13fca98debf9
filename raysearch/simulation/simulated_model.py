"""A worker's simulated model: its fake-quantized float model, built once, switched between assignments."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn

from raysearch.blockwise import BlockReplica
from raysearch.determinism import GeneratorStates
from raysearch.evaluation import Batch, DataSet, Judged, Replica, batch_size, shard_name
from raysearch.evaluation.batches import take, tensors_of
from raysearch.evaluation.forward import frozen_eval
from raysearch.evaluation.microbatch import is_out_of_memory, run_in_microbatches
from raysearch.evaluation.model.copies import private_copy
from raysearch.hooks.attach import check_weight
from raysearch.quantizer import Quantizer, make_quantizer
from raysearch.records import BitAssignment, Option, QuantizerSetup, RangeTable, Scheme
from raysearch.records.applicable import check_assignment
from raysearch.simulation.blockwise_model import BlockwiseModel
from raysearch.simulation.hook_switch import HookSwitch
from raysearch.simulation.parameter_table import ParameterTable
from raysearch.simulation.prefix_cache import PrefixCache
from raysearch.simulation.weight_cache import CACHE_BYTES, DeployedWeights, WeightCache

_log = logging.getLogger(__name__)

_HASHED_AT_ONCE = 2**18
"""Values of an output: few, since each is copied."""

FEW_SAMPLES = 2
"""Samples on which the first recording learns which calls the model makes."""


class SimulatedModel:
    """A copy of the float model that takes any assignment without quantizing a weight twice.

    Its outputs equal those of `create_controller` bit for bit. A quantized weight is made when it is read and
    kept while there is room, so that a forward costs little fake-quantization and no second model is held;
    activations are quantized by the usual hooks, which are on only while their quantizers act. The copy uses
    the float weights, which are only read. A shard that does not fit in memory is run in pieces, see
    `run_in_microbatches`.

    Args:
        model: the float model; left as it is.
        setup: points and groups.
        ranges: calibrated ranges.
        cache_bytes: half for `WeightCache`, half for `PrefixCache`.

    Raises:
        PlacementError: the setup belongs to another model, or this one has quantizers already.
    """

    def __init__(
        self, model: nn.Module, setup: QuantizerSetup, ranges: RangeTable, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._setup = setup
        self._ranges = ranges
        shared: dict[int, object] = {id(p): p for p in model.parameters()}
        self.model = private_copy(model, shared).eval()
        points = setup.of_kind("weight")
        for point in points.values():
            check_weight(self.model, point)
        device = next((p.device for p in model.parameters()), None)
        self._activations: dict[str, Quantizer] = {}
        for name, point in setup.of_kind("activation").items():
            self._activations[name] = make_quantizer(point).to(device).requires_grad_(False)
            self._activations[name].enabled = False
        self._sites = {
            name: [(self.model.get_submodule(site.module), site.name) for site in point.sites]
            for name, point in points.items()
        }
        float_weights = {name: model.get_parameter(name) for name in points}
        deployed = DeployedWeights(float_weights, setup, ranges)
        self._weights = WeightCache(deployed, cache_bytes // 2)
        self._hooks = HookSwitch(self.model, setup, self._activations)
        self._prefix = PrefixCache(self.model, self._sites, self._activations, cache_bytes // 2)
        self._is_compared = False
        self._may_record = True
        self._acting: frozenset[str] = frozenset()
        self._schemes: dict[str, Scheme] = {}
        self._set_schemes: dict[str, Scheme] = {}

    def apply(self, assignment: BitAssignment) -> None:
        """Take an assignment; groups that are not named are float.

        Raises:
            PlacementError: a group is unknown, a width is not one of its own, or its range is missing;
                nothing was changed.
        """
        check_assignment(self._setup, self._ranges, assignment)
        schemes = assignment.per_point(self._setup)
        if schemes != self._schemes:
            self._weights.forget_last()
        for name in self._sites:
            scheme = schemes.get(name)
            if scheme != self._schemes.get(name):
                self._put_weight(name, scheme)
        acting = [name for name in self._activations if name in schemes]
        for name in self._acting.symmetric_difference(acting):
            self._activations[name].enabled = name in schemes
        self._acting = frozenset(acting)
        for name in acting:
            scheme = schemes[name]
            # A range outlives the time its quantizer is off, so it is set again for another width only.
            if self._set_schemes.get(name) != scheme:
                self._activations[name].set_range(scheme.num_bits, self._ranges[name, scheme])
                self._set_schemes[name] = scheme
        self._schemes = schemes
        self._hooks.hook(acting)

    def outputs(self, replica: Replica, assignment: BitAssignment, data: DataSet, index: int) -> Judged:
        """Judged outputs under an assignment on one shard, by a forward from the first layer to the last.

        Args:
            replica: holds the shards, and says how a batch is run.
            assignment: see `apply`.
            data: the data set.
            index: of the shard.

        Raises:
            PlacementError: see `apply`.
            UnitError: one sample alone does not fit in memory.
        """
        self._compare(replica, data, index)
        self.apply(assignment)
        return self._run(replica, data, index)

    def raw_outputs(self, replica: Replica, assignment: BitAssignment, data: DataSet, index: int) -> Any:
        """What the model itself gives under an assignment on one shard; arguments as those of `outputs`."""
        batch = replica.shard(data, index)
        self.apply(assignment)
        with frozen_eval(self.model), torch.no_grad():
            return run_in_microbatches(
                lambda part: replica.forward(self.model, part),
                batch,
                replica.microbatches("forward"),
                name=shard_name(data, index),
            )

    def record(self, replica: Replica, options: Sequence[Option], data: DataSet, index: int) -> None:
        """Keep of a shard's float forward what `later_outputs` of these options needs; see `PrefixCache`.

        Where memory does not suffice for a whole shard with what is kept of it, nothing is kept any more.

        Args:
            replica: holds the shards, and says how a batch is run.
            options: those of the unit at hand.
            data: the data set.
            index: of the shard.
        """
        batch = replica.shard(data, index)
        if not self._may_record or not _fits(replica, batch):
            self._prefix.forget()
            return
        self.apply(BitAssignment({}))
        size = batch_size(batch)
        outputs: list[Judged] = []

        def run(part: Batch) -> None:
            # A quantizer that is not hooked in cannot tell when it is read.
            self._hooks.hook_all()
            outputs[:] = [self._forward(replica, part)]

        run_few: Callable[[], None] | None = None
        if size > 2 * FEW_SAMPLES:
            run_few = partial(run, take(batch, 0, FEW_SAMPLES))
        try:
            self._prefix.record(
                (data, index),
                partial(run, batch),
                [self._points(group) for group in dict(options)],
                [self._points(group) for group in self._setup.groups],
                run_few,
                FEW_SAMPLES / size,
            )
            if outputs:
                if self._hooks.may_unhook:
                    # One float forward serves the recording and the reference.
                    replica.cache.float_outputs.keep(data, index, outputs[0])
                self._compare(replica, data, index, outputs[0])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._may_record = False
        finally:
            self._hooks.hook(())
        # After the handler: while it runs, the traceback keeps the failed attempt's tensors alive.
        if not self._may_record:
            self._give_up_recording()

    def later_outputs(self, replica: Replica, assignment: BitAssignment, data: DataSet, index: int) -> Judged:
        """The same as `outputs`, where only what comes after the first quantizer that acts is run.

        Without a recording of the shard all is run.

        Args:
            replica: holds the shards, and says how a batch is run.
            assignment: see `apply`.
            data: the data set.
            index: of the shard.
        """
        if not self._prefix.holds((data, index)):
            return self.outputs(replica, assignment, data, index)
        self.apply(assignment)
        points = [name for group in assignment.schemes for name in self._points(group)]
        batch = replica.shard(data, index)
        try:
            outputs: Judged = self._prefix.replay(
                (data, index), lambda: self._run_private(replica, batch), points
            )
            return outputs
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        self._give_up_recording()
        return self._run(replica, data, index)

    def depth(self, option: Option) -> int:
        """How late in the recorded forward an option first acts; grows from layer to layer."""
        return self._prefix.depth(self._points(option[0]))

    def _put_weight(self, name: str, scheme: Scheme | None) -> None:
        """Put a weight at a scheme in place of the present one; without one the float weight."""
        maker = None if scheme is None else partial(self._weights.get, name, scheme)
        for module, parameter in self._sites[name]:
            ParameterTable.of(module).answer(parameter, maker)

    def _points(self, group: str) -> tuple[str, ...]:
        return self._setup.groups[group].points

    def _compare(self, replica: Replica, data: DataSet, index: int, hooked: Judged | None = None) -> None:
        """Once: whether the float model gives the same bits with all hooks on as with none."""
        if self._is_compared:
            return
        self._is_compared = True
        if self._hooks.reacts_to_hooks:
            return
        if hooked is None and self._activations:
            self.apply(BitAssignment({}))
            hooked = self._run(replica, data, index)
        if hooked is not None:
            self._hooks.may_unhook = same_bits(hooked, replica.float_outputs(data, index))

    def _give_up_recording(self) -> None:
        self._may_record = False
        self._prefix.forget()
        _log.warning(
            "the outputs of earlier layers do not fit in memory beside a forward; this worker goes on by "
            "full forwards, with the same results"
        )

    def _run(self, replica: Replica, data: DataSet, index: int) -> Judged:
        return run_in_microbatches(
            lambda part: self._run_private(replica, part),
            replica.shard(data, index),
            replica.microbatches("forward"),
            name=shard_name(data, index),
        )

    def _run_private(self, replica: Replica, batch: Batch) -> Judged:
        # As `Replica.run`, without its walk over all modules: this model is private, and in eval mode for
        # good, so that only the generators have to be put back.
        generators = GeneratorStates.now()
        try:
            return self._forward(replica, batch)
        finally:
            generators.restore()
            self._weights.end_forward()

    def _forward(self, replica: Replica, batch: Batch) -> Judged:
        with torch.no_grad():
            return replica.divergence.judged(replica.forward(self.model, batch), batch)


def same_bits(one: Judged, other: Judged) -> bool:
    """Whether two judged outputs are equal, NaN counting as a value."""
    pairs = zip(tensors_of(one), tensors_of(other), strict=True)
    return all(_same_tensor(a, b) for (_, a), (_, b) in pairs)


def bits_of(outputs: Judged) -> bytes:
    """A hash of a judged output by which another is known to be equal: NaN counts as a value, ±0 as one."""
    digest = blake2b(digest_size=16)
    for path, tensor in tensors_of(outputs):
        digest.update(f"{path} {tuple(tensor.shape)}".encode())
        for part in torch.split(tensor.reshape(-1), _HASHED_AT_ONCE):
            # Half precision is unknown to numpy; a sum with 0 takes the sign off −0.
            digest.update((part.double().nan_to_num() + 0.0).cpu().numpy().tobytes())
    return digest.digest()


def _same_tensor(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    # Copies are made only where they may be needed: outputs may be most of a worker's memory.
    return torch.equal(one, other) or torch.equal(one.nan_to_num(), other.nan_to_num())


def _fits(replica: Replica, batch: Batch) -> bool:
    """Whether no forward of so many samples was seen to fail."""
    largest = replica.microbatches("forward").num_samples
    return largest is None or batch_size(batch) <= largest


@dataclass
class _Entry:
    """The simulated model of the last call, with what it was made of."""

    setup: QuantizerSetup
    ranges: RangeTable
    key: str
    model: SimulatedModel | BlockwiseModel


@dataclass
class _Slot:
    """Where a worker keeps it; see `WorkerCache.of`."""

    entry: _Entry | None = None


def simulated_model(
    replica: Replica, setup: QuantizerSetup, ranges: RangeTable, cache_bytes: int = CACHE_BYTES
) -> SimulatedModel | BlockwiseModel:
    """The simulated model of a worker; kept between calls for one setup, ranges and limit.

    Cost: nothing for the objects of the last call, one hash for others with the same content, else one copy
    of the model without its weights.

    Args:
        replica: the worker's float model.
        setup: points and groups.
        ranges: calibrated ranges.
        cache_bytes: see `SimulatedModel`.
    """
    slot = replica.cache.of(_Slot)
    entry = slot.entry
    # A hash costs as much as a small forward, and most units of a call bring the same two objects.
    if entry is not None and entry.setup is setup and entry.ranges is ranges:
        return entry.model
    key = f"{setup.fingerprint()}:{ranges.digest()}:{cache_bytes}"
    if entry is not None and entry.key == key:
        entry.setup, entry.ranges = setup, ranges
        return entry.model
    model: SimulatedModel | BlockwiseModel
    if isinstance(replica, BlockReplica):
        model = BlockwiseModel(replica, setup, ranges)
    else:
        model = SimulatedModel(replica.model, setup, ranges, cache_bytes)
    slot.entry = _Entry(setup, ranges, key, model)
    return model
