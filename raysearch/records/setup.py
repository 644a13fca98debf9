"""Where quantizers go: points, the places each one acts on, and the groups that share a bit-width."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from typing import Any, Literal

from raysearch.errors import ConfigError, StorageError
from raysearch.records.coverage import Coverage
from raysearch.records.granularity import PER_TENSOR, Granularity
from raysearch.records.latency import LatencyProfile

FLOAT_BITS = 32
"""The bit-width that stands for 'not quantized' in costs."""

Role = Literal["parameter", "input", "add", "call"]


@dataclass(frozen=True)
class Site:
    """One place in the eager model where a quantizer acts.

    Attributes:
        module: dotted path of the module, "" for the root.
        role: "parameter" (the quantizer is a parametrization of `name`), "input" (it acts on the
            module's first argument), "add" (it acts on one operand of the `occurrence`-th addition that the
            module itself executes in one forward) or "call" (the same of another function, `name`).
        name: the parameter's name, or the kind of function: "matmul", "einsum", "attention", "linear",
            "bilinear", "conv", "pool".
        occurrence: index of the call within the module's own forward, among those of its kind.
        argument: the operand, from 0.
    """

    module: str
    role: Role
    name: str = ""
    occurrence: int = 0
    argument: int = 0


@dataclass(frozen=True)
class QuantizerSpec:
    """What kind of quantizer a point gets; the bit-width is not part of it.

    Attributes:
        mode: "symmetric" (levels around 0) or "asymmetric" (a zero point, 0 exactly on the grid).
        signed: of a symmetric quantizer; None takes it from the data.
        narrow_range: one level less: −2^(b−1)+1 …, or … 2^b−2 when unsigned.
        half_range: the levels of b−1 bits in a container of b.
        logarithm_scale: the learned parameter is log(scale).
    """

    mode: Literal["symmetric", "asymmetric"] = "symmetric"
    signed: bool | None = None
    narrow_range: bool = False
    half_range: bool = False
    logarithm_scale: bool = False


@dataclass(frozen=True)
class QuantizationPoint:
    """One quantizer: a weight, or a tensor that quantizable operations read.

    Attributes:
        id: stable name, such as "conv1.weight", "conv1.input" or "block.add0.input1".
        kind: "weight" or "activation".
        sites: where it acts; several for tied weights, or for a tensor with several readers.
        shape: of the weight, or of one sample of the activation (no batch dimension).
        granularity: which of its elements share a scale.
        macs: multiply-accumulates per sample of all the operations that use this weight; 0 for others.
        input_point: id of the activation point that feeds the weight's operation; "" when it is float.
        spec: the kind of quantizer; None is the default of its kind: signed symmetric for weights (narrow at
            8 bits), asymmetric for activations.
    """

    id: str
    kind: Literal["weight", "activation"]
    sites: tuple[Site, ...]
    shape: tuple[int, ...]
    granularity: Granularity = PER_TENSOR
    macs: int = 0
    input_point: str = ""
    spec: QuantizerSpec | None = None

    @property
    def grid_spec(self) -> QuantizerSpec:
        """`spec`, or the default of the kind: signed symmetric for weights, asymmetric for activations."""
        if self.spec is not None:
            return self.spec
        if self.kind == "weight":
            return QuantizerSpec("symmetric", signed=True)
        return QuantizerSpec("asymmetric")

    @property
    def num_elements(self) -> int:
        """Number of weights, or of activation values per sample."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def num_scales(self) -> int:
        """Number of scales the quantizer holds."""
        return self.granularity.num_scales(self.shape)

    @property
    def num_zero_points(self) -> int:
        """Number of zero points that are stored with a weight: one a scale if it is asymmetric, else none."""
        stored = self.kind == "weight" and self.spec is not None and self.spec.mode == "asymmetric"
        return self.num_scales if stored else 0

    @property
    def layer(self) -> str:
        """The module of the first site."""
        return self.sites[0].module


@dataclass(frozen=True)
class QuantizerGroup:
    """Points that must share a bit-width, and the widths they may take (ascending)."""

    id: str
    points: tuple[str, ...]
    bit_widths: tuple[int, ...]


@dataclass(frozen=True)
class LiveTensor:
    """One tensor that the executed graph keeps, and for how long.

    Attributes:
        name: of the operation that makes it.
        num_elements: values per sample.
        point: id of the activation point whose width it is kept at; "" when something reads it as float32.
        first: step that makes it.
        last: last step that reads it; it is kept from `first` to `last`, both included.
    """

    name: str
    num_elements: int
    point: str
    first: int
    last: int


@dataclass(frozen=True)
class StoredTensor:
    """A parameter or buffer that the packed file holds beside the quantized weights.

    Attributes:
        name: its entry in model.safetensors.
        dtype: its type there, "F32" for example.
        shape: its shape.
        num_bytes: its size.
        is_quantizer: whether it belongs to an activation quantizer: the float model does not have it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    is_quantizer: bool = False


@dataclass(frozen=True)
class QuantizerSetup:
    """The result of placement: every point and every group, keyed by id in graph order.

    Attributes:
        points: where quantizers act.
        groups: which of them share a width, and the widths they may take.
        pairs: weight id → the (weight, input) widths that may go together, where a hardware profile does not
            allow every combination of the two groups' widths.
        unsupported: names of weights of recurrent layers, which stay float.
        tensors: what is kept while the model runs, in the order it is made; empty when that is not known.
        latency: measured times of this model's layers, when a profile was given.
        stored: what the packed file holds beside the quantized weights, tied tensors once; None when that
            is not known: `size` then counts the weights alone.
        coverage: how much of the weights that is; no part of the fingerprint. None when it is not known.
    """

    points: Mapping[str, QuantizationPoint]
    groups: Mapping[str, QuantizerGroup]
    pairs: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    unsupported: tuple[str, ...] = ()
    tensors: tuple[LiveTensor, ...] = ()
    latency: LatencyProfile | None = None
    stored: tuple[StoredTensor, ...] | None = None
    coverage: Coverage | None = None

    def __post_init__(self) -> None:
        grouped = [p for group in self.groups.values() for p in group.points]
        if sorted(grouped) != sorted(self.points):
            raise ValueError("every quantization point must belong to exactly one group")

    def of_kind(self, kind: Literal["weight", "activation"]) -> dict[str, QuantizationPoint]:
        """The points of one kind, in graph order."""
        return {name: point for name, point in self.points.items() if point.kind == kind}

    def group_of(self, point_id: str) -> QuantizerGroup:
        """The group that holds a point.

        Raises:
            KeyError: no group holds it.
        """
        for group in self.groups.values():
            if point_id in group.points:
                return group
        raise KeyError(point_id)

    def group_kind(self, group_id: str) -> Literal["weight", "activation"]:
        """Whether a group holds weights or activations; a group never mixes them."""
        return self.points[self.groups[group_id].points[0]].kind

    def broken_pairs(self, bits: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """Weight id → (its width, its input's), of those that `pairs` does not allow.

        Args:
            bits: group id → bit-width; a weight or input whose group is not named is float and fits.
        """
        width = {p: bits[g.id] for g in self.groups.values() if g.id in bits for p in g.points}
        widths = {
            name: (width[name], width[self.points[name].input_point])
            for name in self.pairs
            if name in width and self.points[name].input_point in width
        }
        return {name: pair for name, pair in widths.items() if pair not in self.pairs[name]}

    def options(self) -> tuple[tuple[str, int], ...]:
        """Every option (group id, bit-width) in group order, widths ascending."""
        return tuple((g.id, bits) for g in self.groups.values() for bits in g.bit_widths)

    def fingerprint(self) -> str:
        """A short hash of all that decides about a result."""
        decisive = replace(self, coverage=None)
        return blake2b(decisive.to_json().encode(), digest_size=8).hexdigest()

    def to_json(self) -> str:
        """The setup as JSON text; `from_json` reads it back."""
        data: dict[str, Any] = {
            "points": [_point_to_json(point) for point in self.points.values()],
            "groups": [asdict(group) for group in self.groups.values()],
        }
        if self.pairs:
            data["pairs"] = dict(self.pairs)
        if self.unsupported:
            data["unsupported"] = list(self.unsupported)
        if self.tensors:
            data["tensors"] = [asdict(tensor) for tensor in self.tensors]
        if self.latency is not None:
            data["latency"] = self.latency.as_dict()
        if self.stored is not None:
            data["stored"] = [asdict(tensor) for tensor in self.stored]
        if self.coverage is not None:
            data["coverage"] = self.coverage.as_dict()
        return json.dumps(data, indent=1)

    @classmethod
    def from_json(cls, text: str) -> QuantizerSetup:
        """Read what `to_json` wrote.

        Raises:
            StorageError: the text is no quantizer setup.
        """
        try:
            data = json.loads(text)
            points = [_point_from(entry) for entry in data["points"]]
            groups = [
                QuantizerGroup(entry["id"], tuple(entry["points"]), tuple(entry["bit_widths"]))
                for entry in data["groups"]
            ]
            pairs = {
                name: tuple((int(w), int(a)) for w, a in allowed)
                for name, allowed in data.get("pairs", {}).items()
            }
            named, grouped = {point.id: point for point in points}, {group.id: group for group in groups}
            return cls(
                named,
                grouped,
                pairs,
                tuple(map(str, data.get("unsupported", ()))),
                tuple(LiveTensor(**entry) for entry in data.get("tensors", ())),
                LatencyProfile.from_dict(data["latency"]) if "latency" in data else None,
                tuple(map(_stored_from, data["stored"])) if "stored" in data else None,
                Coverage.from_dict(data["coverage"]) if "coverage" in data else None,
            )
        except (ValueError, KeyError, TypeError, ConfigError) as error:
            raise StorageError(f"setup.json is damaged: {error}. Start the run anew.") from error


def _stored_from(entry: dict[str, Any]) -> StoredTensor:
    return StoredTensor(**{**entry, "shape": tuple(entry["shape"])})


def _point_to_json(point: QuantizationPoint) -> dict[str, Any]:
    # The order and the key `axis` are those of every setup.json so far; a setup's fingerprint, which names
    # runs, is a hash of this text. Groups add keys of their own.
    granularity = point.granularity
    entry: dict[str, Any] = {
        "id": point.id,
        "kind": point.kind,
        "sites": [asdict(site) for site in point.sites],
        "shape": point.shape,
        "axis": granularity.axis,
        "macs": point.macs,
        "input_point": point.input_point,
        "spec": None if point.spec is None else asdict(point.spec),
    }
    if granularity.kind == "per_group":
        entry["group_axis"] = granularity.group_axis
        entry["group_size"] = granularity.group_size
    return entry


def _point_from(entry: dict[str, Any]) -> QuantizationPoint:
    fields = dict(entry)
    axis, group_axis = fields.pop("axis", None), fields.pop("group_axis", None)
    fields["granularity"] = Granularity(axis, group_axis, fields.pop("group_size", None))
    fields["sites"] = tuple(Site(**site) for site in entry["sites"])
    fields["shape"] = tuple(entry["shape"])
    fields["spec"] = QuantizerSpec(**entry["spec"]) if entry.get("spec") else None
    return QuantizationPoint(**fields)
