"""The integer codes and scales that will be deployed, of every weight at every scheme."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, NotRequired

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save
from typing_extensions import TypedDict

from raysearch.errors import PlacementError, StorageError
from raysearch.records.granularity import Granularity
from raysearch.records.ranges import (
    QuantizerRange,
    RangeTable,
    check_codes,
    check_minima,
    stored_minimum,
    stored_range,
)
from raysearch.records.scheme import Scheme
from raysearch.records.typed_json import read_json
from raysearch.records.typed_tables import checked_array

_INFO = "info"

FEW_VECTORS = "fewer calibration vectors than inputs"
"""How the note of a weight begins that rounding was fitted to too little for."""

_NUM_NAMED = 3
"""Weights that a statement about several names."""


@dataclass(frozen=True, eq=False)
class RoundedWeight:
    """One weight at one scheme: a code q stands for (q − zero_point)·scale, or for q·scale − minimum.

    All arrays are read-only.

    Attributes:
        codes: in the shape of the weight; int8 when signed, else uint8.
        scale: float32, positive, [num_scales].
        zero_point: int32, [num_scales]; all 0 for a symmetric quantizer.
        signed: whether the codes are signed.
        granularity: which elements of the weight share a scale.
        error_nearest: tr(ΔW H ΔWᵀ) of nearest rounding at the calibrated range: the mean over samples of
            the squared change of the layer's output, summed over its positions. NaN where no second moments
            were taken.
        error: the same of these codes.
        mean_moment: the mean of H's diagonal, in the unit of the errors; NaN where none was taken, and in
            tables of earlier versions.
        method: what chose the codes, "gptq" or "nearest".
        notes: what a user should know, such as a damping that had to be raised. Figures stand in brackets at
            the end, so that weights with the same note can be told together.
        minimum: float32, 0 or more, [num_scales]; None where the quantizer has none.
    """

    codes: npt.NDArray[np.int8] | npt.NDArray[np.uint8]
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.int32]
    signed: bool
    granularity: Granularity
    error_nearest: float
    error: float
    method: str
    notes: tuple[str, ...] = ()
    mean_moment: float = math.nan
    minimum: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        dtype = np.int8 if self.signed else np.uint8
        if self.codes.dtype != dtype:
            raise ValueError(f"codes are {self.codes.dtype} where {np.dtype(dtype)} is due")
        if not np.isfinite(self.scale).all() or (self.scale <= 0).any():
            raise ValueError(f"scales must be finite and positive, got {self.scale}")
        num_scales = (self.granularity.num_scales(self.codes.shape),)
        if self.scale.shape != num_scales or self.zero_point.shape != num_scales:
            raise ValueError(
                f"a weight of shape {self.codes.shape} has {num_scales} scales {self.granularity}, not "
                f"{self.scale.shape} with {self.zero_point.shape} zero points"
            )
        if self.minimum is not None:
            check_minima(self.minimum, self.scale)
        for name, values in {"codes": self.codes, **self.arrays_of_scales()}.items():
            array = np.array(values, order="C")
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    def arrays_of_scales(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays that hold one entry for each scale, by the names of the attributes."""
        arrays = {"scale": self.scale, "zero_point": self.zero_point}
        return arrays if self.minimum is None else {**arrays, "minimum": self.minimum}

    @property
    def range(self) -> QuantizerRange:
        """Scale, zero point, sign and codes, as a quantizer and a range table take them."""
        return QuantizerRange(
            self.scale, self.zero_point, self.signed, self.codes, self.second_moment, self.minimum
        )

    @property
    def second_moment(self) -> float:
        """tr(ΔW H ΔWᵀ)/mean diag(H): ‖ΔW‖² with every direction counted by what the layer reads along it.

        NaN where no second moments were taken, 0 where all that the layer reads is 0.
        """
        return 0.0 if self.mean_moment == 0 else self.error / self.mean_moment

    def values(self) -> npt.NDArray[np.float32]:
        """What the codes stand for, float32, in the shape of the weight: what the quantizer computes."""
        scale, zero_point = self._spread(self.scale), self._spread(self.zero_point)
        values: npt.NDArray[np.float32] = (self.codes.astype(np.float32) - zero_point) * scale
        if self.minimum is not None:
            values = values - self._spread(self.minimum)
        return values.astype(np.float32)

    def _spread(self, array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """One entry a scale as what broadcasts to the weight."""
        shape = self.codes.shape
        if self.granularity.axis is None:
            return array.astype(np.float32).reshape((1,) * len(shape))
        places = self.granularity.normalized(shape)
        values = array.astype(np.float32).reshape(places.scale_shape(shape))
        if places.group_axis is None or places.group_size is None:
            return values
        groups = np.arange(shape[places.group_axis]) // places.group_size
        return np.take(values, groups, axis=places.group_axis)


@dataclass(frozen=True)
class RoundingTable:
    """Rounded weights keyed by (quantizer id, scheme); each depends on no other.

    Attributes:
        weights: (quantizer id, scheme) → codes and scales.
    """

    weights: Mapping[tuple[str, Scheme], RoundedWeight]

    def __getitem__(self, key: tuple[str, int | str | Scheme]) -> RoundedWeight:
        """One weight at one scheme, which may be written as a bit-width or a text.

        Raises:
            PlacementError: the table does not hold it; says what it holds.
        """
        point, value = key
        scheme = Scheme.of(value)
        if (point, scheme) in self.weights:
            return self.weights[point, scheme]
        schemes = self.schemes(point)
        if not schemes:
            raise PlacementError(
                f"the rounding table holds no weight '{point}': it is of another model or setup. Round anew; "
                f"it holds {len(self.points())} weights."
            )
        raise PlacementError(
            f"the rounding table holds '{point}' at {', '.join(map(str, schemes))}, not at '{scheme}'. Round "
            f"anew with this scheme among the group's."
        )

    def __contains__(self, key: object) -> bool:
        """Whether (quantizer id, scheme) is in it."""
        if not isinstance(key, tuple) or len(key) != 2:
            return False
        return (key[0], Scheme.of(key[1])) in self.weights

    def __iter__(self) -> Iterator[tuple[str, Scheme]]:
        """Its keys."""
        return iter(self.weights)

    def __len__(self) -> int:
        """Number of (weight, scheme) pairs."""
        return len(self.weights)

    def points(self) -> tuple[str, ...]:
        """Its quantizer ids, each once."""
        return tuple(dict.fromkeys(point for point, _ in self.weights))

    def schemes(self, point: str) -> tuple[Scheme, ...]:
        """The schemes of one weight, ascending."""
        return tuple(sorted(scheme for name, scheme in self.weights if name == point))

    def of(self, point: str) -> RoundingTable:
        """The part of one weight."""
        return RoundingTable({key: value for key, value in self.weights.items() if key[0] == point})

    @classmethod
    def merge(cls, tables: Iterable[RoundingTable]) -> RoundingTable:
        """All weights of several tables."""
        weights: dict[tuple[str, Scheme], RoundedWeight] = {}
        for table in tables:
            weights.update(table.weights)
        return cls(weights)

    def notes(self) -> tuple[str, ...]:
        """What a user should know of the weights, one statement for all with the same note."""
        weights: dict[str, dict[str, str]] = {}
        for (point, _), weight in self.weights.items():
            for note in weight.notes:
                kind = note.partition(" (")[0]
                weights.setdefault(kind, {})[point] = note
        return tuple(_statement(kind, notes) for kind, notes in weights.items())

    def fitted_to_few(self) -> tuple[str, ...]:
        """The weights that read fewer vectors than they have inputs: on those all codes look good."""
        names = [
            point
            for (point, _), weight in self.weights.items()
            if any(note.startswith(FEW_VECTORS) for note in weight.notes)
        ]
        return tuple(dict.fromkeys(names))

    def put_into(self, ranges: RangeTable) -> RangeTable:
        """Ranges with these scales and codes in the place of the calibrated ones of the same weights."""
        return RangeTable(ranges.ranges, {key: weight.range for key, weight in self.weights.items()})

    def digest(self) -> str:
        """A short hash of everything in it."""
        return blake2b(self.to_bytes(), digest_size=8).hexdigest()

    def to_bytes(self) -> bytes:
        """The table in the safetensors format; `from_bytes` reads it back.

        Keys are "id|scheme|codes", "…|scale", "…|zero_point" and, of some, "…|minimum"; "info" is a JSON text
        of the rest.
        """
        tensors: dict[str, np.ndarray] = {}
        info: dict[str, dict[str, Any]] = {}
        for (point, scheme), weight in self.weights.items():
            name = f"{point}|{scheme}"
            for field, array in {"codes": weight.codes, **weight.arrays_of_scales()}.items():
                tensors[f"{name}|{field}"] = array
            info[name] = {
                "signed": weight.signed,
                "granularity": asdict(weight.granularity),
                "errors": [_number(weight.error_nearest), _number(weight.error)],
                "mean_moment": _number(weight.mean_moment),
                "method": weight.method,
                "notes": list(weight.notes),
            }
        tensors[_INFO] = np.frombuffer(json.dumps(info).encode(), np.uint8)
        return bytes(save(tensors))

    @classmethod
    def from_bytes(cls, data: bytes) -> RoundingTable:
        """Read what `to_bytes` wrote.

        Raises:
            StorageError: the bytes are no rounding table.
        """
        try:
            tensors = load(data)
            info = checked_array(tensors, _INFO, (np.uint8,), 1).tobytes()
            entries = read_json(dict[str, _WeightForm], info, "its info")
            weights = {_key_from(name): _weight_from(name, entry, tensors) for name, entry in entries.items()}
            num_minima = sum(weight.minimum is not None for weight in weights.values())
            if len(tensors) != 1 + 3 * len(weights) + num_minima:
                raise ValueError(f"{len(tensors) - 1} arrays are no {len(weights)} weights of three each")
        except (SafetensorError, PlacementError, StorageError, ValueError) as error:
            raise StorageError(f"rounding.safetensors is damaged: {str(error).rstrip('.'):.300}.") from error
        return cls(weights)


class _WeightForm(TypedDict):
    signed: bool
    granularity: Granularity
    errors: tuple[float | None, float | None]
    mean_moment: NotRequired[float | None]
    method: str
    notes: list[str]


def _statement(kind: str, notes: Mapping[str, str]) -> str:
    """One line on the weights that share a kind of note; figures where it is one weight alone."""
    points = list(notes)
    if len(points) == 1:
        return f"Rounding of {points[0]}: {notes[points[0]]}."
    names = ", ".join(points[:_NUM_NAMED])
    if len(points) > _NUM_NAMED:
        names += f" and {len(points) - _NUM_NAMED} more"
    return f"Rounding of {len(points)} weights ({names}): {kind}."


def _number(value: float) -> float | None:
    # JSON knows no NaN.
    return value if np.isfinite(value) else None


def _number_from(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _key_from(name: str) -> tuple[str, Scheme]:
    point, _, scheme = name.rpartition("|")
    return point, Scheme.of(scheme)


def _weight_from(name: str, entry: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> RoundedWeight:
    before, after, mean_moment = map(_number_from, (*entry["errors"], entry.get("mean_moment")))
    codes = checked_array(tensors, f"{name}|codes", (np.int8, np.uint8))
    check_codes(codes, _key_from(name)[1], name)
    scale, zero_point = stored_range(tensors, name)
    return RoundedWeight(
        codes=codes,
        scale=scale,
        zero_point=zero_point,
        signed=bool(entry["signed"]),
        granularity=Granularity(**entry["granularity"]),
        error_nearest=before,
        error=after,
        method=str(entry["method"]),
        notes=tuple(map(str, entry["notes"])),
        mean_moment=mean_moment,
        minimum=stored_minimum(tensors, name),
    )
