"""What the inputs of a layer become when the layers before it are quantized, against what they were.

G  groups of rows that read different inputs    d  inputs of a row    R  rows of a group    v  vectors
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from raysearch.cluster.pool import UnitValue
from raysearch.errors import DataError
from raysearch.evaluation import (
    Batch,
    DataSet,
    Replica,
    ShardView,
    batch_size,
    run_in_microbatches,
    shard_name,
)
from raysearch.evaluation.batches import take
from raysearch.evaluation.forward import frozen_eval
from raysearch.evaluation.model.copies import private_copy
from raysearch.hooks.attach import attach_activation
from raysearch.hooks.flat_weights import follow_parametrizations
from raysearch.hooks.locations import module_of
from raysearch.quantizer import make_quantizer
from raysearch.records.winner import Winner
from raysearch.rounding.guided_moments import GuidedTap, guided_pieces
from raysearch.rounding.layers import Geometry, vectors, where_counted
from raysearch.rounding.second_moments import Moment, MomentTap, Reader, dtype_of_moments, reader_from
from raysearch.simulation import DeployedWeights

_READERS, _SAMPLES, _STEPS = "readers", "num_samples", "steps"

FEW_SAMPLES = 2
"""Samples on which the order of the layers is read."""


@dataclass(frozen=True)
class Deployed:
    """How far a model is quantized.

    Attributes:
        winner: what it is on its way to; all activations are quantized.
        done: the weights that are quantized; the others are float.
        guided_seed: of the draws by which vectors count, as for guided moments; None: all count alike.
    """

    winner: Winner
    done: tuple[str, ...]
    guided_seed: int | None = None


@dataclass
class Drift:
    """The sums over all inputs x̃ of one part of a weight, and the inputs x of the float model beside them.

    Attributes:
        own: Σ x̃ x̃ᵀ, [G, d, d], float64, or float32 as plain moments are.
        cross: Σ x x̃ᵀ, of the same shape and type.
        num_vectors: how many were added.
    """

    own: np.ndarray
    cross: np.ndarray
    num_vectors: int

    def add(self, other: Drift) -> None:
        """Become the sum of the two."""
        self.own += other.own
        self.cross += other.cross
        self.num_vectors += other.num_vectors

    @property
    def moment(self) -> Moment:
        """The second moments of the inputs as they are deployed."""
        return Moment(self.own, self.num_vectors)

    @property
    def change(self) -> Moment:
        """Σ (x − x̃) x̃ᵀ: what the inputs lost, along what they are."""
        return Moment(self.cross - self.own, self.num_vectors)


Drifts = dict[Reader, Drift]
"""The parts of a weight that something reads → what they read."""


def order_of_layers(replica: Replica, names: Sequence[str]) -> UnitValue:
    """Unit: the weights in the order in which a forward reads them, those that read the same together.

    Of weights that an embedding looks up, and of those that nothing reads, none is given: the inputs of the
    one never change, and of the other nothing is known.

    Args:
        replica: holds the float model and the calibration shards.
        names: the weights.
    """
    tap = _InputTap({name: replica.model.get_parameter(name) for name in names})
    with frozen_eval(replica.model), torch.no_grad(), tap:
        replica.forward(replica.model, take(replica.shard(DataSet.CALIBRATION, 0), 0, FEW_SAMPLES))
    uses: dict[str, list[tuple[object, ...]]] = {}
    for reader, geometry, _, source in tap.calls:
        uses.setdefault(reader.weight, []).append((id(source), geometry, reader.rows, reader.columns))
    looked_up = {reader.weight for reader, _, _, _ in tap.calls if reader.kind == "embedding"}
    steps: dict[object, list[str]] = {}
    for name, reads in uses.items():
        if name not in looked_up:
            steps.setdefault((tuple(reads), replica.model.get_parameter(name).shape), []).append(name)
    return {_STEPS: np.frombuffer(json.dumps(list(steps.values())).encode(), np.uint8)}


def steps_from(value: UnitValue) -> list[list[str]]:
    """Read what `order_of_layers` gave."""
    steps: list[list[str]] = json.loads(value[_STEPS].tobytes())
    return steps


def observe_drift(replica: Replica, deployed: Deployed, name: str, first: int, last: int) -> UnitValue:
    """Unit: the drift of what one weight reads, on the calibration shards first … last−1.

    Two forwards a shard, of the float model and of the one that is quantized so far, and where moments are
    guided a backward a draw. Memory: 32·d² bytes (16·d² of `FLOAT32_FROM` inputs and more), the vectors of
    one call, and what that weight reads in one forward.

    Args:
        replica: holds the float model and the calibration shards.
        deployed: what is quantized already.
        name: the weight.
        first: first shard.
        last: the shard behind the last.
    """
    model = _quantized_so_far(replica, deployed)
    parameters = {name: replica.model.get_parameter(name)}

    def own_reads(part: Batch) -> list[_InputRead]:
        tap = _InputTap(parameters, replica.counted(part))
        with torch.no_grad(), tap:
            replica.forward(model, part)
        return tap.reads()

    def collect(part: Batch) -> Drifts:
        tap = _InputTap(parameters, replica.counted(part))
        with torch.no_grad(), tap:
            replica.forward(replica.model, part)
        return _drifts(name, tap.reads(), own_reads(part))

    def finish(tap: GuidedTap, part: Batch, output: Tensor, cotangents: Iterator[Tensor]) -> Drifts:
        reads = []
        for read, counting_gv in tap.counting_reads(output, cotangents):
            reader = replace(read.reader, is_guided=counting_gv is not None)
            reads.append(_InputRead(reader, read.call.geometry, read.call.input, counting_gv))
        return _drifts(name, reads, own_reads(part))

    parts: list[Drifts] = []
    num_samples = 0
    for index in range(first, last):
        shard = replica.shard(DataSet.CALIBRATION, index)
        num_samples += batch_size(shard)
        if deployed.guided_seed is not None:
            view = ShardView(replica, DataSet.CALIBRATION, index)
            parts.extend(guided_pieces(view, parameters, deployed.guided_seed, finish, merge_drifts))
            continue
        with frozen_eval(replica.model):
            parts.append(
                run_in_microbatches(
                    collect,
                    shard,
                    replica.microbatches("drift"),
                    combine=merge_drifts,
                    name=shard_name(DataSet.CALIBRATION, index),
                )
            )
    return _to_value(merge_drifts(parts), num_samples)


def merge_drifts(parts: Sequence[Drifts]) -> Drifts:
    """The sum of several, added in the order given; the first of each reader takes it up."""
    total: Drifts = {}
    for part in parts:
        for reader, drift in part.items():
            if reader in total:
                total[reader].add(drift)
            else:
                total[reader] = drift
    return total


def counting_alike(drifts: Drifts) -> Drifts:
    """The guided ones, if there are any: other uses have no part in the outputs, and are of another unit."""
    guided = {reader: drift for reader, drift in drifts.items() if reader.is_guided}
    return guided or drifts


def drifts_from(value: UnitValue) -> tuple[Drifts, int]:
    """Read what `observe_drift` gave, and of how many samples."""
    drifts: Drifts = {}
    for index, entry in enumerate(json.loads(value[_READERS].tobytes())):
        num_vectors = entry.pop("num_vectors")
        drifts[reader_from(entry)] = Drift(value[f"own{index}"], value[f"cross{index}"], num_vectors)
    return drifts, int(value[_SAMPLES])


def _to_value(drifts: Drifts, num_samples: int) -> UnitValue:
    arrays: dict[str, np.ndarray] = {_SAMPLES: np.array(num_samples)}
    described = []
    for index, (reader, drift) in enumerate(drifts.items()):
        described.append({**asdict(reader), "num_vectors": drift.num_vectors})
        arrays[f"own{index}"] = drift.own
        arrays[f"cross{index}"] = drift.cross
    arrays[_READERS] = np.frombuffer(json.dumps(described).encode(), np.uint8)
    return arrays


class _InputTap(MomentTap):
    """While active, keeps what the given parameters are multiplied with, in the order of the calls.

    Attributes:
        calls: who reads, how, a copy of the input (a later operation may write into it), and the input.
    """

    def __init__(self, parameters: Mapping[str, Tensor], counted: Tensor | None = None) -> None:
        super().__init__(parameters, counted)
        self.calls: list[tuple[Reader, Geometry, Tensor, Tensor]] = []

    def _observe(self, geometry: Geometry, values: Tensor, weight: Tensor, source: Tensor) -> None:
        reader = self._reader_of(weight, geometry)
        if reader is not None:
            own = where_counted(geometry, values, self.counted)
            self.calls.append((reader, geometry, own.clone(), source))

    def reads(self) -> list[_InputRead]:
        """The calls, without the inputs themselves."""
        return [_InputRead(reader, geometry, values) for reader, geometry, values, _ in self.calls]


@dataclass(frozen=True)
class _InputRead:
    """What one call read of an input for a weight.

    Attributes:
        reader: the weight, or the part of it.
        geometry: of the call.
        values: the input.
        counting_gv: what each vector counts; None: all count alike.
    """

    reader: Reader
    geometry: Geometry
    values: Tensor
    counting_gv: Tensor | None = None

    @property
    def form(self) -> tuple[Reader, torch.Size]:
        """What is the same however much is quantized."""
        return replace(self.reader, is_guided=False), self.values.shape


def _drifts(name: str, reads: Sequence[_InputRead], own_reads: Sequence[_InputRead]) -> Drifts:
    if [read.form for read in reads] != [read.form for read in own_reads]:
        raise DataError(
            f"the weight '{name}' is read by other calls, or by inputs of other shapes, once the layers "
            f"before it are quantized: the model's forward depends on values. Set rounding.refine without "
            f"'sequential'."
        )
    total: Drifts = {}
    for read, own in zip(reads, own_reads, strict=True):
        total = merge_drifts([total, {read.reader: _drift_of(read, own.values)}])
    return total


def _drift_of(read: _InputRead, own_values: Tensor) -> Drift:
    counting_gv = read.counting_gv
    # About 1, as in `moment_of`.
    mean = 1.0 if counting_gv is None else float(counting_gv.mean())
    own_total: Tensor | None = None
    cross_total: Tensor | None = None
    num_vectors = 0
    pieces, own_pieces = vectors(read.geometry, read.values), vectors(read.geometry, own_values)
    for piece_gdv, own_gdv in zip(pieces, own_pieces, strict=True):
        if counting_gv is not None:
            stop = num_vectors + own_gdv.shape[2]
            roots_gv = (counting_gv[:, num_vectors:stop] / mean).sqrt()[:, None].to(own_gdv)
            piece_gdv, own_gdv = piece_gdv * roots_gv, own_gdv * roots_gv
        dtype = dtype_of_moments(own_gdv.shape[1])
        own_gdd = (own_gdv @ own_gdv.transpose(1, 2)).to(dtype)
        cross_gdd = (piece_gdv @ own_gdv.transpose(1, 2)).to(dtype)
        own_total = own_gdd if own_total is None else own_total + own_gdd
        cross_total = cross_gdd if cross_total is None else cross_total + cross_gdd
        num_vectors += own_gdv.shape[2]
    if own_total is None or cross_total is None:
        raise DataError("a layer was called with no samples; give batches of at least one.")
    if counting_gv is not None:
        own_total, cross_total = own_total * mean, cross_total * mean
    return Drift(own_total.cpu().numpy(), cross_total.cpu().numpy(), num_vectors)


@dataclass
class _Slot:
    """The model of a worker's last unit; the units of one step bring the same object."""

    deployed: Deployed | None = None
    model: nn.Module | None = None


def _quantized_so_far(replica: Replica, deployed: Deployed) -> nn.Module:
    slot = replica.cache.of(_Slot)
    if slot.deployed is not deployed or slot.model is None:
        slot.model = _make_model(replica.model, deployed)
        slot.deployed = deployed
    return slot.model


def _make_model(model: nn.Module, deployed: Deployed) -> nn.Module:
    """A copy that shares its float weights; activations and the weights that are done are quantized."""
    setup, ranges = deployed.winner.setup, deployed.winner.ranges
    schemes = deployed.winner.assignment.per_point(setup)
    shared: dict[int, object] = {id(p): p for p in model.parameters()}
    quantized = private_copy(model, shared).eval()
    device = next((p.device for p in model.parameters()), None)
    activations: dict[str, nn.Module] = {}
    for name, point in setup.of_kind("activation").items():
        quantizer = make_quantizer(point).to(device).requires_grad_(False)
        quantizer.enabled = name in schemes
        if name in schemes:
            quantizer.set_range(schemes[name].num_bits, ranges[name, schemes[name]])
        activations[name] = quantizer
    attach_activation(quantized, setup, activations)
    floats = {name: model.get_parameter(name) for name in setup.of_kind("weight")}
    source = DeployedWeights(floats, setup, ranges)
    for name in deployed.done:
        weight = nn.Parameter(source.make(name, schemes[name]), requires_grad=False)
        for site in setup.points[name].sites:
            module = module_of(quantized, site)
            # Past `setattr`, which would register the parameter anew.
            module._parameters[site.name] = weight
            follow_parametrizations(module)
    return quantized


def parts_of(drifts: Drifts) -> Iterator[tuple[Reader, Moment]]:
    """Every part of a weight that something reads, with the second moments of its deployed inputs."""
    for reader, drift in drifts.items():
        yield reader, drift.moment
