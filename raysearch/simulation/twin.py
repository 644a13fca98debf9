"""A worker's quantized twin of its float model: built once, switched from option to option."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor, nn

from raysearch.evaluation import Batch, Replica, batch_size, output_tensor
from raysearch.evaluation.batches import take
from raysearch.evaluation.microbatch import is_out_of_memory, run_in_microbatches
from raysearch.hooks.attach import check_weight
from raysearch.quantizer import Quantizer, make_quantizer
from raysearch.records import BitAssignment, Option, QuantizerSetup, RangeTable
from raysearch.records.applicable import check_assignment
from raysearch.simulation.hook_switch import Wiring
from raysearch.simulation.prefix_cache import Prefix

_log = logging.getLogger(__name__)

CACHE_BYTES = 2**30
"""What a worker may keep between forwards by default: half of it fake-quantized weights, half the outputs of
layers before the quantized one. More only saves time; the results are the same."""

FEW_SAMPLES = 2
"""Samples on which the first recording learns which calls the model makes."""


class WeightCache:
    """Fake-quantized weights, each made by the quantizer that is deployed, once.

    When the limit is met, what is not held is made anew at each use. Nothing is put out for it: the options
    come round and round, and the least recently used weight is the next one to come.

    Args:
        weights: quantizer id → float weight.
        setup: points.
        ranges: calibrated ranges.
        limit_bytes: of weights held.
    """

    def __init__(
        self, weights: dict[str, nn.Parameter], setup: QuantizerSetup, ranges: RangeTable, limit_bytes: int
    ) -> None:
        self.weights, self._ranges, self._free = weights, ranges, limit_bytes
        self._quantizers = {
            name: make_quantizer(setup.points[name]).to(weight.device) for name, weight in weights.items()
        }
        self._held: dict[tuple[str, int], nn.Parameter] = {}

    def get(self, name: str, bits: int) -> nn.Parameter:
        """One weight at one width, equal bit for bit to what the controller's parametrization computes."""
        if (name, bits) in self._held:
            return self._held[name, bits]
        quantizer = self._quantizers[name]
        quantizer.set_range(bits, self._ranges[name, bits])
        with torch.no_grad():
            made = nn.Parameter(quantizer(self.weights[name]), requires_grad=False)
        size = made.numel() * made.element_size()
        if size <= self._free:
            self._free -= size
            self._held[name, bits] = made
        return made


class QuantizedTwin:
    """A copy of the float model that takes any assignment without quantizing a weight twice.

    Its outputs equal those of `create_controller` bit for bit. Weights are put in place of the float ones, so
    a forward costs no fake-quantization of weights; activations are quantized by the usual hooks, which are
    on only while their quantizers act. The copy shares the float weights, which are only read. A shard that
    does not fit in memory is run in pieces, see `run_in_microbatches`.

    Args:
        model: the float model; left as it is.
        setup: points and groups.
        ranges: calibrated ranges.
        cache_bytes: half for `WeightCache`, half for `Prefix`.

    Raises:
        PlacementError: the setup belongs to another model, or this one has quantizers already.
    """

    def __init__(
        self, model: nn.Module, setup: QuantizerSetup, ranges: RangeTable, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._setup, self._ranges = setup, ranges
        shared: dict[int, object] = {id(p): p for p in model.parameters()}
        self.model = copy.deepcopy(model, shared).eval()
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
        floats = {name: model.get_parameter(name) for name in points}
        self._wiring = Wiring(self.model, setup, self._activations)
        self._is_compared = False
        self._cache = WeightCache(floats, setup, ranges, cache_bytes // 2)
        self._prefix = Prefix(self.model, self._sites, self._activations, cache_bytes // 2)
        self._may_record = True
        self._acting: frozenset[str] = frozenset()
        self._widths: dict[str, int] = {}
        self._ranged: dict[str, int] = {}

    def apply(self, assignment: BitAssignment) -> None:
        """Take an assignment; groups that are not named are float.

        Raises:
            PlacementError: a group is unknown, a width is not one of its own, or its range is missing;
                nothing was changed.
        """
        check_assignment(self._setup, self._ranges, assignment)
        widths = assignment.per_point(self._setup)
        for name, sites in self._sites.items():
            bits = widths.get(name, 0)
            if bits != self._widths.get(name, 0):
                weight = self._cache.get(name, bits) if bits else self._cache.weights[name]
                for module, parameter in sites:
                    module._parameters[parameter] = weight
        acting = [name for name in self._activations if name in widths]
        for name in self._acting.symmetric_difference(acting):
            self._activations[name].enabled = name in widths
        self._acting = frozenset(acting)
        for name in acting:
            if self._ranged.get(name) != widths[name]:
                self._activations[name].set_range(widths[name], self._ranges[name, widths[name]])
                self._ranged[name] = widths[name]
        self._widths = widths
        self._wiring.wire(acting)

    def outputs(self, replica: Replica, assignment: BitAssignment, data: str, index: int) -> Tensor:
        """Judged outputs under an assignment on one shard, by a forward from the first layer to the last.

        Raises:
            PlacementError: see `apply`.
            UnitError: one sample alone does not fit in memory.
        """
        self._compare(replica, data, index)
        self.apply(assignment)
        return self._run(replica, data, index)

    def record(self, replica: Replica, options: Sequence[Option], data: str, index: int) -> None:
        """Keep of a shard's float forward what `later_outputs` of these options needs; see `Prefix`.

        Where memory does not suffice for a whole shard with what is kept of it, nothing is kept any more.
        """
        batch = replica.shard(data, index)
        if not self._may_record or not _fits(replica, batch):
            self._prefix.forget()
            return
        self.apply(BitAssignment({}))
        now = [self._points(group) for group in dict(options)]
        every = [self._points(group) for group in self._setup.groups]
        size, seen = batch_size(batch), list[Tensor]()

        def watched(part: Batch = batch) -> None:
            # A quantizer that is not hooked in cannot tell when it is read.
            self._wiring.wire_all()
            seen[:] = [self._forward(replica, part)]

        few = (lambda: watched(take(batch, 0, FEW_SAMPLES))) if size > 2 * FEW_SAMPLES else None
        try:
            self._prefix.record((data, index), watched, now, every, few, FEW_SAMPLES / size)
            if seen:
                if self._wiring.may_leave_out:
                    # One float forward serves the recording and the reference.
                    replica.keep_float_outputs(data, index, seen[0])
                self._compare(replica, data, index, seen[0])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._may_record = False
        finally:
            self._wiring.wire(())
        if not self._may_record:
            self._give_up_recording()

    def later_outputs(self, replica: Replica, assignment: BitAssignment, data: str, index: int) -> Tensor:
        """The same as `outputs`, where only what comes after the first quantizer that acts is run.

        Without a recording of the shard all is run.
        """
        if not self._prefix.holds((data, index)):
            return self.outputs(replica, assignment, data, index)
        self.apply(assignment)
        points = [name for group in assignment.bits for name in self._points(group)]
        batch = replica.shard(data, index)
        try:
            found: Tensor = self._prefix.replay((data, index), lambda: self._quietly(replica, batch), points)
            return found
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        self._give_up_recording()
        return self._run(replica, data, index)

    def depth(self, option: Option) -> int:
        """How late in the recorded forward an option first acts; grows from layer to layer."""
        return self._prefix.depth(self._points(option[0]))

    def _points(self, group: str) -> tuple[str, ...]:
        return self._setup.groups[group].points

    def _compare(self, replica: Replica, data: str, index: int, hooked: Tensor | None = None) -> None:
        """Once: whether the float model gives the same bits with all hooks on as with none."""
        if self._is_compared:
            return
        self._is_compared = True
        if self._wiring.is_watchful:
            return
        if hooked is None and self._activations:
            self.apply(BitAssignment({}))
            hooked = self._run(replica, data, index)
        if hooked is not None:
            self._wiring.may_leave_out = same_bits(hooked, replica.float_outputs(data, index))

    def _give_up_recording(self) -> None:
        self._may_record = False
        self._prefix.forget()
        _log.warning(
            "the outputs of earlier layers do not fit in memory beside a forward; this worker goes on by "
            "full forwards, with the same results"
        )

    def _run(self, replica: Replica, data: str, index: int) -> Tensor:
        batch, state = replica.shard(data, index), replica.microbatches("forward")
        name = f"shard {index} of the {data} data"
        found: Tensor = run_in_microbatches(
            lambda part: self._quietly(replica, part), batch, state, name=name
        )
        return found

    def _quietly(self, replica: Replica, batch: Batch) -> Tensor:
        # As `Replica.run`, without the walk over all modules: the twin is private, and in eval mode for good.
        rng = torch.get_rng_state()
        try:
            return self._forward(replica, batch)
        finally:
            torch.set_rng_state(rng)

    def _forward(self, replica: Replica, batch: Batch) -> Tensor:
        with torch.no_grad():
            return output_tensor(replica.forward(self.model, batch))


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two outputs are equal, NaN counting as a value."""
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def _fits(replica: Replica, batch: Batch) -> bool:
    """Whether no forward of so many samples was seen to fail."""
    largest = replica.microbatches("forward").num_samples
    return largest is None or batch_size(batch) <= largest


@dataclass
class _Held:
    setup: QuantizerSetup
    ranges: RangeTable
    key: str
    twin: QuantizedTwin


def quantized_twin(
    replica: Replica, setup: QuantizerSetup, ranges: RangeTable, cache_bytes: int = CACHE_BYTES
) -> QuantizedTwin:
    """The twin of the replica's model; cached per setup, ranges and limit.

    Cost: nothing for the objects of the last call, one hash for others with the same content, else one copy
    of the model without its weights.
    """
    held: _Held | None = replica.cache.get("twin")
    # A hash costs as much as a small forward, and most units of a call bring the same two objects.
    if held is not None and held.setup is setup and held.ranges is ranges:
        return held.twin
    digest = blake2b(ranges.to_bytes(), digest_size=16).hexdigest()
    key = f"{setup.fingerprint()}:{digest}:{cache_bytes}"
    if held is not None and held.key == key:
        held.setup, held.ranges = setup, ranges
        return held.twin
    twin = QuantizedTwin(replica.model, setup, ranges, cache_bytes)
    replica.cache["twin"] = _Held(setup, ranges, key, twin)
    return twin
