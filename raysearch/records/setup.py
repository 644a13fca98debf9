"""Where quantizers go: points, the places each one acts on, and the groups that share a scheme."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from typing import Any, Literal, NotRequired, TypeVar

from typing_extensions import TypedDict

from raysearch.errors import ConfigError, PlacementError, StorageError
from raysearch.records.coverage import Coverage
from raysearch.records.granularity import Granularity
from raysearch.records.latency import LatencyProfile
from raysearch.records.network import NetworkNode, check_network
from raysearch.records.point import QuantizationPoint, QuantizerSpec, Site
from raysearch.records.scale_format import SCALE_FORMATS
from raysearch.records.scheme import Scheme
from raysearch.records.typed_json import Count, read_json

MOST_ELEMENTS = 2**48
"""Of one tensor: more than any machine holds."""


@dataclass(frozen=True)
class QuantizerGroup:
    """Points that must share a scheme.

    Attributes:
        id: name of the group: that of its first point.
        points: ids of the points.
        schemes: what the points may take, ascending; a bit-width or a text stands for its scheme.
        reason: why they are one, for people, where that does not follow from the model alone.
    """

    id: str
    points: tuple[str, ...]
    schemes: tuple[Scheme, ...]
    reason: str = ""

    def __init__(
        self, id: str, points: Iterable[str], schemes: Iterable[int | str | Scheme], reason: str = ""
    ) -> None:
        object.__setattr__(self, "id", id)
        object.__setattr__(self, "points", tuple(points))
        object.__setattr__(self, "schemes", tuple(map(Scheme.of, schemes)))
        object.__setattr__(self, "reason", reason)

    @property
    def bit_widths(self) -> tuple[int, ...]:
        """The widths among its schemes, ascending."""
        return tuple(sorted({scheme.num_bits for scheme in self.schemes}))


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
    num_elements: Count
    point: str
    first: Count
    last: Count


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
    shape: tuple[Count, ...]
    num_bytes: Count
    is_quantizer: bool = False


@dataclass(frozen=True)
class QuantizerSetup:
    """The result of placement: every point and every group, keyed by id in graph order.

    Attributes:
        points: where quantizers act.
        groups: which of them share a scheme, and the schemes they may take.
        pairs: weight id → the (weight, input) widths that may go together, where a hardware profile does not
            allow every combination of the two groups' widths.
        unsupported: names of weights of recurrent layers that stay float, in setups of before such layers
            were quantized; `coverage` says it since.
        tensors: what is kept while the model runs, in the order it is made; empty when that is not known.
        latency: measured times of this model's layers, when a profile was given.
        stored: what the packed file holds beside the quantized weights, tied tensors once; None when that
            is not known: `size` then counts the weights alone.
        coverage: how much of the weights that is; no part of the fingerprint. None when it is not known.
        network: what reads what, to be drawn; no part of the fingerprint. Empty when that is not known.
    """

    points: Mapping[str, QuantizationPoint]
    groups: Mapping[str, QuantizerGroup]
    pairs: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    unsupported: tuple[str, ...] = ()
    tensors: tuple[LiveTensor, ...] = ()
    latency: LatencyProfile | None = None
    stored: tuple[StoredTensor, ...] | None = None
    coverage: Coverage | None = None
    network: tuple[NetworkNode, ...] = ()

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

    def options(self) -> tuple[tuple[str, Scheme], ...]:
        """Every option (group id, scheme) in group order, schemes ascending."""
        return tuple((g.id, scheme) for g in self.groups.values() for scheme in g.schemes)

    def fingerprint(self) -> str:
        """A short hash of all that decides about a result."""
        decisive = replace(self, coverage=None, network=())
        return blake2b(decisive.to_json().encode(), digest_size=8).hexdigest()

    def to_json(self) -> str:
        """The setup as JSON text; `from_json` reads it back."""
        data: dict[str, Any] = {
            "points": [_point_to_json(point) for point in self.points.values()],
            "groups": [_group_to_json(group) for group in self.groups.values()],
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
        if self.network:
            data["network"] = [node.as_json for node in self.network]
        return json.dumps(data, indent=1)

    @classmethod
    def from_json(cls, text: str) -> QuantizerSetup:
        """Read what `to_json` wrote.

        Raises:
            StorageError: the text is no quantizer setup.
        """
        try:
            data = read_json(_SetupForm, text, "setup.json")
            points = [_point_from(entry) for entry in data["points"]]
            groups = [_group_from(entry) for entry in data["groups"]]
            pairs = {
                name: tuple((int(w), int(a)) for w, a in allowed)
                for name, allowed in data.get("pairs", {}).items()
            }
            setup = cls(
                _by_id(points),
                _by_id(groups),
                pairs,
                tuple(map(str, data.get("unsupported", ()))),
                tuple(LiveTensor(**entry) for entry in data.get("tensors", ())),
                LatencyProfile.from_dict(data["latency"]) if "latency" in data else None,
                tuple(map(_stored_from, data["stored"])) if "stored" in data else None,
                Coverage.from_dict(data["coverage"]) if "coverage" in data else None,
                tuple(map(_node_from, data.get("network", ()))),
            )
            _check_fits(setup)
            return setup
        except (ValueError, ConfigError, PlacementError) as error:
            raise StorageError(f"setup.json is damaged: {str(error).rstrip('.')}.") from error


class _PointForm(TypedDict):
    id: str
    kind: Literal["weight", "activation"]
    sites: list[Site]
    shape: list[Count]
    axis: NotRequired[int | None]
    macs: Count
    input_point: NotRequired[str]
    spec: NotRequired[QuantizerSpec | None]
    group_axis: NotRequired[int]
    group_size: NotRequired[int]
    scale_format: NotRequired[str]


class _GroupForm(TypedDict):
    id: str
    points: list[str]
    bit_widths: NotRequired[list[int]]
    schemes: NotRequired[list[int | str]]
    reason: NotRequired[str]


class _NodeForm(TypedDict):
    name: str
    kind: str
    sources: list[Count]
    weights: NotRequired[list[str]]


class _SetupForm(TypedDict):
    points: list[_PointForm]
    groups: list[_GroupForm]
    pairs: NotRequired[dict[str, list[tuple[int, int]]]]
    unsupported: NotRequired[list[str]]
    tensors: NotRequired[list[LiveTensor]]
    latency: NotRequired[LatencyProfile]
    stored: NotRequired[list[StoredTensor]]
    coverage: NotRequired[Coverage]
    network: NotRequired[list[_NodeForm]]


Named = TypeVar("Named", QuantizationPoint, QuantizerGroup)


def _by_id(entries: Iterable[Named]) -> dict[str, Named]:
    named: dict[str, Named] = {}
    for entry in entries:
        if entry.id in named:
            raise ValueError(f"'{entry.id:.100}' is in it twice")
        named[entry.id] = entry
    return named


def _check_fits(setup: QuantizerSetup) -> None:
    """Refuse a setup whose parts name each other wrongly, or of which nothing can be made.

    Raises:
        ValueError: names the part.
        PlacementError: an axis does not exist.
    """
    if not setup.groups:
        raise ValueError("it has no groups, so nothing would be quantized")
    activations = setup.of_kind("activation")
    for point in setup.points.values():
        _check_point(point)
        if point.input_point and point.input_point not in activations:
            raise ValueError(
                f"'{point.id:.100}' has the input_point '{point.input_point:.100}', no activation"
            )
    for group in setup.groups.values():
        kinds = {setup.points[name].kind for name in group.points}
        if len(kinds) != 1 or not group.schemes:
            raise ValueError(f"the group '{group.id:.100}' needs schemes, and points of one kind")
    for name in setup.pairs:
        if name not in setup.points:
            raise ValueError(f"pairs name '{name:.100}', which is no point")
    check_network(setup.network)
    for tensor in setup.tensors:
        if tensor.point and tensor.point not in activations:
            raise ValueError(
                f"the tensor '{tensor.name:.100}' has the point '{tensor.point:.100}', no activation"
            )


def _check_point(point: QuantizationPoint) -> None:
    point.granularity.normalized(point.shape, point.id)
    if not point.sites:
        raise ValueError(f"the point '{point.id:.100}' has no sites")
    if not 0 < point.num_elements <= MOST_ELEMENTS:
        raise ValueError(f"the point '{point.id:.100}' has {point.num_elements} elements")
    if point.scale_format not in SCALE_FORMATS:
        raise ValueError(
            f"the point '{point.id:.100}' has the scale_format '{point.scale_format:.50}'; known: "
            f"{', '.join(SCALE_FORMATS)}"
        )


def _group_to_json(group: QuantizerGroup) -> dict[str, Any]:
    # As every setup.json so far, where there are widths and nothing else: its hash names runs.
    is_plain = all(scheme.is_plain for scheme in group.schemes)
    key = "bit_widths" if is_plain else "schemes"
    entry = {"id": group.id, "points": group.points, key: [scheme.as_json for scheme in group.schemes]}
    return entry | {"reason": group.reason} if group.reason else entry


def _group_from(entry: dict[str, Any]) -> QuantizerGroup:
    schemes = entry["schemes"] if "schemes" in entry else entry["bit_widths"]
    return QuantizerGroup(entry["id"], entry["points"], schemes, entry.get("reason", ""))


def _node_from(entry: dict[str, Any]) -> NetworkNode:
    weights, sources = tuple(entry.get("weights", ())), tuple(entry["sources"])
    return NetworkNode(entry["name"], entry["kind"], weights, sources)


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
    if point.scale_format != "float32":
        entry["scale_format"] = point.scale_format
    return entry


def _point_from(entry: dict[str, Any]) -> QuantizationPoint:
    fields = dict(entry)
    axis, group_axis = fields.pop("axis", None), fields.pop("group_axis", None)
    fields["granularity"] = Granularity(axis, group_axis, fields.pop("group_size", None))
    fields["sites"] = tuple(Site(**site) for site in entry["sites"])
    fields["shape"] = tuple(entry["shape"])
    fields["spec"] = QuantizerSpec(**entry["spec"]) if entry.get("spec") else None
    return QuantizationPoint(**fields)
