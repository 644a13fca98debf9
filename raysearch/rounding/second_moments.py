"""Second moments H = Σ u uᵀ of what every weight is multiplied with, on the calibration data.

G  groups of rows that read different inputs    d  inputs of a row    rows  output channels
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raysearch.cluster.pool import UnitValue
from raysearch.errors import DataError
from raysearch.evaluation import Batch, DataSet, Replica, batch_size, run_in_microbatches, shard_name
from raysearch.evaluation.forward import frozen_eval
from raysearch.hooks.functions import CallMode
from raysearch.rounding.layers import Geometry, LayerKind, counts, read_calls, vectors, where_counted
from raysearch.rounding.recurrent import recurrent_calls
from raysearch.rounding.symmetric import packed, unpacked

FloatArray = npt.NDArray[np.floating[Any]]

FLOAT32_FROM = 4096
"""Of so many inputs and more, second moments and their factor are held in float32."""

NUM_BLOCKS, LEAST_BLOCK, MOST_BLOCK = 4, 64, 1024
"""A symmetric product is taken in so many blocks of rows, each from the diagonal on: 5/8 of the work. They
have at least and at most so many rows."""

_READERS, _SAMPLES = "readers", "num_samples"


def dtype_of_moments(num_inputs: int) -> torch.dtype:
    """What the second moments of so many inputs, and their factor, are held in."""
    return torch.float64 if num_inputs < FLOAT32_FROM else torch.float32


@dataclass(frozen=True)
class Reader:
    """A weight, or a part of one, that reads an input: attention splits its `in_proj_weight` by rows.

    Attributes:
        weight: quantizer id.
        kind: the operation.
        groups: convolution groups.
        rows: first and last-but-one entry along dimension 0.
        columns: the same along dimension 1; (0, 0) of a weight with one dimension.
        is_guided: whether what it reads counts with the gradients of its outputs, see `guided_moments`.
    """

    weight: str
    kind: LayerKind
    groups: int
    rows: tuple[int, int]
    columns: tuple[int, int]
    is_guided: bool = False


@dataclass
class Moment:
    """The sum over all inputs that the same readers read.

    Attributes:
        values: H, [G, d, d], of which the upper half counts; or that half alone, [G, d(d+1)/2]; or of an
            embedding how often each row is read, [rows]. float64, or float32 from `FLOAT32_FROM` inputs on.
        num_vectors: how many vectors were added.
    """

    values: FloatArray
    num_vectors: int

    @property
    def is_packed(self) -> bool:
        """Whether the upper half alone is held."""
        return self.values.ndim == 2

    @property
    def num_inputs(self) -> int:
        """D of a matrix."""
        return isqrt(2 * self.values.shape[1]) if self.is_packed else self.values.shape[-1]

    def matrices(self) -> FloatArray:
        """H whole, [G, d, d]: an array of its own where half of it is held."""
        return unpacked(self.values) if self.is_packed else self.values


@dataclass
class Moments:
    """What some of the calibration data gives.

    Attributes:
        sums: readers → the sum over what they read together.
        num_samples: samples that were run.
    """

    sums: dict[tuple[Reader, ...], Moment] = field(default_factory=dict)
    num_samples: int = 0

    def to_value(self) -> UnitValue:
        """As arrays: one a moment, of a symmetric matrix the upper half."""
        arrays: dict[str, np.ndarray] = {_SAMPLES: np.array(self.num_samples)}
        described = []
        for index, (readers, moment) in enumerate(self.sums.items()):
            arrays[f"moment{index}"] = packed(moment.values) if moment.values.ndim == 3 else moment.values
            described.append(
                {"readers": [asdict(reader) for reader in readers], "num_vectors": moment.num_vectors}
            )
        arrays[_READERS] = np.frombuffer(json.dumps(described).encode(), np.uint8)
        return arrays

    @classmethod
    def from_value(cls, value: UnitValue) -> Moments:
        """Read what `to_value` gave; matrices stay packed."""
        sums: dict[tuple[Reader, ...], Moment] = {}
        for index, entry in enumerate(json.loads(value[_READERS].tobytes())):
            readers = tuple(reader_from(reader) for reader in entry["readers"])
            sums[readers] = Moment(value[f"moment{index}"], entry["num_vectors"])
        return cls(sums, int(value[_SAMPLES]))


def merge_moments(parts: Iterable[Moments]) -> Moments:
    """The sum of several, added in the order given; the arrays of the first of each reader take it up."""
    return reduce(_added, parts, Moments())


def _added(one: Moments, other: Moments) -> Moments:
    sums = dict(one.sums)
    for readers, moment in other.sums.items():
        before = sums.get(readers)
        if before is not None:
            before.values += moment.values
            moment = Moment(before.values, before.num_vectors + moment.num_vectors)
        sums[readers] = moment
    return Moments(sums, one.num_samples + other.num_samples)


def observe_moments(replica: Replica, weights: Sequence[str], first: int, last: int) -> UnitValue:
    """Unit: the second moments of all weights on the calibration shards first … last−1.

    One forward a shard. Products over `PATCH_BYTES` of vectors are in the model's precision, at least
    float32; their sums are float64, or of `FLOAT32_FROM` inputs and more float32. A sum of sums: of the calls
    and pieces of a shard, of shards, of units. With n the most that are added in one of them each, n₁ + n₂ +
    n₃ in all, an entry is off by at most (n₁ + n₂ + n₃)·2⁻²⁴·√(H_ii H_jj), since no partial sum is larger.

    Memory: twice 8·d² bytes (4·d² in float32) a distinct input and group of these weights, half of that more
    in the end, the inputs of one forward, and the vectors. A shard that does not fit is run in pieces, which
    are added in order.

    Args:
        replica: holds the float model and the calibration shards.
        weights: names of the parameters.
        first: first shard.
        last: the shard behind the last.
    """

    def collect(part: Batch) -> Moments:
        tap = MomentTap(parameters, replica.counted(part))
        with torch.no_grad(), tap:
            replica.forward(replica.model, part)
        return tap.finish(batch_size(part))

    def of_shard(index: int) -> Moments:
        with frozen_eval(replica.model):
            return run_in_microbatches(
                collect,
                replica.shard(DataSet.CALIBRATION, index),
                replica.microbatches("moments"),
                combine=merge_moments,
                name=shard_name(DataSet.CALIBRATION, index),
            )

    parameters = {name: replica.model.get_parameter(name) for name in weights}
    total = Moments()
    for index in range(first, last):
        # No name for what a shard gives: it would hold that while the next one is taken.
        total = merge_moments([total, of_shard(index)])
    return total.to_value()


@dataclass
class _Input:
    """A tensor that a layer read, for as long as another layer may read the same."""

    reference: weakref.ref[Tensor]
    version: int
    geometry: Geometry
    moment: Moment
    readers: list[Reader]

    def is_of(self, source: Tensor, geometry: Geometry) -> bool:
        return self.reference() is source and self.version == source._version and self.geometry == geometry


class MomentTap(CallMode):
    """While active, takes the second moments of what the given parameters are multiplied with.

    Layers are known by the parameter that they read, whole or a part of it, wherever the call is made: within
    a module of torch, in a model's own forward, or inside `F.multi_head_attention_forward`. Layers that read
    one tensor share its moment, which is then computed once.

    Args:
        parameters: quantizer id → the parameter.
        counted: which positions of the batch count, bool [N, …]; None: all.
    """

    def __init__(self, parameters: Mapping[str, Tensor], counted: Tensor | None = None) -> None:
        super().__init__()
        self.counted = counted
        self._places: dict[int, list[tuple[str, Tensor]]] = {}
        for name, parameter in parameters.items():
            storage = parameter.untyped_storage().data_ptr()
            self._places.setdefault(storage, []).append((name, parameter))
        self._open: list[_Input] = []
        self._moments = Moments()

    def on_call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Look at the operands of a layer's call, and make the call as it is."""
        for call in (*read_calls(func, args, kwargs), *recurrent_calls(func, args)):
            self._observe(call.geometry, call.input.detach(), call.weight, call.input)
        return func(*args, **kwargs)

    def finish(self, num_samples: int) -> Moments:
        """The sums of the forward that has ended, of so many samples."""
        self._close(self._open)
        self._open = []
        self._moments.num_samples = num_samples
        return self._moments

    def _observe(self, geometry: Geometry, values: Tensor, weight: Tensor, source: Tensor) -> None:
        reader = self._reader_of(weight, geometry)
        if reader is None:
            return
        for entry in self._open:
            if entry.is_of(source, geometry):
                entry.readers.append(reader)
                return
        self._close_finished()
        moment = moment_of(geometry, where_counted(geometry, values, self.counted), weight)
        self._open.append(_Input(weakref.ref(source), source._version, geometry, moment, [reader]))

    def _close_finished(self) -> None:
        # Only from the front: sums are then always added in the order of the calls, whenever a tensor dies.
        count = 0
        while count < len(self._open) and self._open[count].reference() is None:
            count += 1
        self._close(self._open[:count])
        self._open = self._open[count:]

    def _close(self, entries: Iterable[_Input]) -> None:
        for entry in entries:
            part = Moments({tuple(entry.readers): entry.moment})
            self._moments = _added(self._moments, part)

    def _reader_of(self, weight: Tensor, geometry: Geometry) -> Reader | None:
        for name, parameter in self._places.get(weight.untyped_storage().data_ptr(), ()):
            place = _part_of(parameter, weight)
            if place is not None:
                return Reader(name, geometry.kind, geometry.groups, *place)
            turned = geometry.turned() if weight.ndim > 1 else None
            if turned is None:
                continue
            place = _part_of(parameter, weight.transpose(-1, -2))
            if place is not None:
                return Reader(name, turned.kind, geometry.groups, *place)
        return None


def _part_of(parameter: Tensor, weight: Tensor) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Rows and columns of a parameter that a view of it holds; None where it is no such part."""
    if weight.dtype != parameter.dtype or weight.stride() != parameter.stride():
        return None
    offset = weight.storage_offset() - parameter.storage_offset()
    starts = []
    for stride in parameter.stride():
        starts.append(offset // stride if stride else 0)
        offset -= starts[-1] * stride
    spans = [(start, start + size) for start, size in zip(starts, weight.shape, strict=True)]
    fits = all(0 <= low < high <= size for (low, high), size in zip(spans, parameter.shape, strict=True))
    has_whole_kernel = all(
        span == (0, size) for span, size in zip(spans[2:], parameter.shape[2:], strict=True)
    )
    if offset or not fits or not has_whole_kernel:
        return None
    return spans[0], spans[1] if len(spans) > 1 else (0, 0)


def moment_of(
    geometry: Geometry, source: Tensor, weight: Tensor, counting_gv: Tensor | None = None
) -> Moment:
    """The sum over all vectors that one call reads.

    Args:
        geometry: of the call.
        source: its input.
        weight: what it reads beside that.
        counting_gv: what each vector counts, positive, [G, vectors]; 1 where it is not given.
    """
    if geometry.kind == "embedding":
        values = counts(source, weight.shape[0], counting_gv)
        return Moment(values.cpu().numpy(), source.numel())
    total: Tensor | None = None
    # About 1, so that products in the model's precision neither overflow nor vanish.
    mean = 1.0 if counting_gv is None else float(counting_gv.mean())
    num_vectors = 0
    for piece_gdv in vectors(geometry, source):
        num_columns, size = piece_gdv.shape[2], piece_gdv.shape[1]
        if total is None:
            dtype = dtype_of_moments(size)
            total = torch.zeros(len(piece_gdv), size, size, dtype=dtype, device=piece_gdv.device)
        if counting_gv is not None:
            roots_gv = (counting_gv[:, num_vectors : num_vectors + num_columns] / mean).sqrt()
            piece_gdv = piece_gdv * roots_gv[:, None].to(piece_gdv)
        _add_products(total, piece_gdv)
        num_vectors += num_columns
    if total is None:
        raise DataError("a layer was called with no samples; give batches of at least one.")
    if counting_gv is not None:
        total *= mean
    return Moment(total.cpu().numpy(), num_vectors)


def _add_products(total_gdd: Tensor, piece_gdv: Tensor) -> None:
    """Add Σ u uᵀ of a piece to the upper half of a sum; what lies below it is left incomplete."""
    size = piece_gdv.shape[1]
    step = min(max(LEAST_BLOCK, -(-size // NUM_BLOCKS)), MOST_BLOCK)
    for start in range(0, size, step):
        rows = slice(start, start + step)
        product = piece_gdv[:, rows] @ piece_gdv[:, start:].transpose(1, 2)
        total_gdd[:, rows, start:] += product


def reader_from(entry: Mapping[str, Any]) -> Reader:
    """A reader of plain values, as `asdict` gives them."""
    return Reader(**{**entry, "rows": tuple(entry["rows"]), "columns": tuple(entry["columns"])})
