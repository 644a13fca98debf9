"""Scales and zero points of every quantizer at every scheme; codes of the weights that were rounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from raysearch.errors import PlacementError, StorageError
from raysearch.records.scheme import Scheme
from raysearch.records.typed_tables import checked_array

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]
CodeArray = npt.NDArray[np.int8] | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class QuantizerRange:
    """Affine parameters of one quantizer at one scheme.

    A stored code q in [quant_min, quant_max] stands for the value (q − zero_point)·scale, or, where there are
    minima, q·scale − minimum.

    Attributes:
        scale: float32, shape [num_scales], positive.
        zero_point: int32, shape [num_scales]; all 0 for a symmetric quantizer.
        signed: whether the codes are signed: weights, or activations with negative values.
        codes: of a weight whose codes were chosen by a rounding method, in the weight's shape, int8 when
            signed, else uint8; None where a value's code is the nearest one.
        second_moment: of such a weight, tr(ΔW H ΔWᵀ)/mean diag(H), see `RoundedWeight.second_moment`; NaN
            where it is not known.
        minimum: of each scale, float32, 0 or more; None where the quantizer has none.
    """

    scale: FloatArray
    zero_point: IntArray
    signed: bool
    codes: CodeArray | None = None
    second_moment: float = math.nan
    minimum: FloatArray | None = None

    def __post_init__(self) -> None:
        if not np.isfinite(self.scale).all() or (self.scale <= 0).any():
            raise ValueError(f"scales must be finite and positive, got {self.scale}")
        if self.minimum is not None:
            check_minima(self.minimum, self.scale)

    def with_scales(self, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> QuantizerRange:
        """The range with everything that it holds one of for each scale changed in the same way."""
        minimum = None if self.minimum is None else change(self.minimum)
        return replace(self, scale=change(self.scale), zero_point=change(self.zero_point), minimum=minimum)


def check_minima(minimum: FloatArray, scale: FloatArray) -> None:
    """Refuse what no minima of these scales are.

    Raises:
        ValueError: they are not as many, not finite, or below 0.
    """
    if minimum.shape != scale.shape or not np.isfinite(minimum).all() or (minimum < 0).any():
        raise ValueError(f"minima must be as many as scales, finite and not below 0, got {minimum}")


@dataclass(frozen=True)
class RangeTable:
    """Ranges keyed by (quantizer id, scheme); a bit-width stands for the plain scheme.

    Attributes:
        ranges: as they were calibrated.
        rounded: scales and codes of the weights that a rounding method chose; they take the place of the
            calibrated ones wherever a weight is quantized.
    """

    ranges: Mapping[tuple[str, Scheme], QuantizerRange]
    rounded: Mapping[tuple[str, Scheme], QuantizerRange] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("ranges", "rounded"):
            table = getattr(self, name)
            # A plain scheme equals its width as a key, but a table that is read has schemes throughout.
            keyed = {(point, Scheme.of(scheme)): value for (point, scheme), value in table.items()}
            object.__setattr__(self, name, keyed)

    def __getitem__(self, key: tuple[str, int | str | Scheme]) -> QuantizerRange:
        """The range in force: the rounded weight's, else the calibrated one."""
        point, scheme = key[0], Scheme.of(key[1])
        if (point, scheme) in self.rounded:
            return self.rounded[point, scheme]
        return self.ranges[point, scheme]

    @property
    def calibrated(self) -> RangeTable:
        """The table without what rounding put in its place."""
        return RangeTable(self.ranges)

    def of(self, point: str) -> RangeTable:
        """The ranges of one quantizer."""
        ranges = {key: value for key, value in self.ranges.items() if key[0] == point}
        return RangeTable(ranges, {key: value for key, value in self.rounded.items() if key[0] == point})

    def to_bytes(self) -> bytes:
        """The calibrated ranges in the safetensors format; `from_bytes` reads them back."""
        tensors: dict[str, np.ndarray] = {}
        for (point, scheme), value in self.ranges.items():
            # safetensors writes memory as it lies, so a strided array would come back scrambled.
            tensors[f"{point}|{scheme}|scale"] = np.asarray(value.scale, order="C")
            tensors[f"{point}|{scheme}|zero_point"] = np.asarray(value.zero_point, order="C")
            tensors[f"{point}|{scheme}|signed"] = np.array([value.signed], dtype=np.uint8)
            if value.minimum is not None:
                tensors[f"{point}|{scheme}|minimum"] = np.asarray(value.minimum, order="C")
        return bytes(save(tensors))

    def digest(self) -> str:
        """A hash of everything in the table, codes included."""
        digest = blake2b(self.to_bytes(), digest_size=16)
        # Sorted: a table that was read has another order than one that was made.
        for (point, scheme), value in sorted(self.rounded.items(), key=lambda item: item[0]):
            digest.update(f"{point}|{scheme}".encode())
            for array in (value.scale, value.zero_point, value.codes):
                digest.update(np.asarray(array, order="C").tobytes())
            if value.minimum is not None:
                digest.update(np.asarray(value.minimum, order="C").tobytes())
        return digest.hexdigest()

    @classmethod
    def from_bytes(cls, data: bytes) -> RangeTable:
        """Read what `to_bytes` wrote.

        Raises:
            StorageError: the bytes are no range table.
        """
        try:
            tensors = load(data)
            ranges: dict[tuple[str, Scheme], QuantizerRange] = {}
            for key in sorted(tensors):
                name, _, field = key.rpartition("|")
                if field == "scale":
                    point, _, text = name.rpartition("|")
                    scale, zero_point = stored_range(tensors, name)
                    signed = checked_array(tensors, f"{name}|signed", (np.uint8,), 1)
                    if signed.tolist() not in ([0], [1]):
                        raise ValueError(f"'{name:.200}|signed' is {signed[:2].tolist()}; it is 0 or 1")
                    minimum = stored_minimum(tensors, name)
                    value = QuantizerRange(scale, zero_point, bool(signed[0]), minimum=minimum)
                    ranges[point, Scheme.of(text)] = value
            num_minima = sum(value.minimum is not None for value in ranges.values())
            if 3 * len(ranges) + num_minima != len(tensors):
                raise ValueError(f"{len(tensors)} arrays are no {len(ranges)} ranges of three each")
        except (SafetensorError, PlacementError, ValueError) as error:
            raise StorageError(f"ranges.safetensors is damaged: {str(error).rstrip('.'):.300}.") from error
        return cls(ranges)


def stored_range(tensors: Mapping[str, np.ndarray], name: str) -> tuple[FloatArray, IntArray]:
    """Scale and zero point under the names `…|scale` and `…|zero_point` of a file.

    Args:
        tensors: of the file.
        name: what stands before.

    Raises:
        ValueError: one is missing, or of another type or length.
    """
    scale = checked_array(tensors, f"{name}|scale", (np.float32,), 1)
    zero_point = checked_array(tensors, f"{name}|zero_point", (np.int32,), 1)
    if not scale.size or scale.shape != zero_point.shape:
        raise ValueError(f"'{name:.200}' has {scale.size} scales and {zero_point.size} zero points")
    return scale, zero_point


def stored_minimum(tensors: Mapping[str, np.ndarray], name: str) -> FloatArray | None:
    """The minima under the name `…|minimum` of a file; None where there are none.

    Args:
        tensors: of the file.
        name: what stands before.

    Raises:
        ValueError: they are of another type.
    """
    if f"{name}|minimum" not in tensors:
        return None
    minimum: FloatArray = checked_array(tensors, f"{name}|minimum", (np.float32,), 1)
    return minimum


def check_codes(codes: CodeArray, scheme: Scheme, name: str) -> None:
    """Refuse codes that a bit-width does not have.

    Args:
        codes: as they are stored: int8 when they are signed, else uint8.
        scheme: says the bit-width.
        name: whose codes they are, for messages.

    Raises:
        ValueError: one is outside the grid.
    """
    if not codes.size:
        raise ValueError(f"'{name:.200}' has no codes")
    num_levels = 2**scheme.num_bits
    least = -num_levels // 2 if codes.dtype == np.int8 else 0
    lowest, highest = int(codes.min()), int(codes.max())
    if lowest < least or highest >= least + num_levels:
        raise ValueError(
            f"'{name:.200}' has codes from {lowest} to {highest}; {scheme.in_words} have {least} to "
            f"{least + num_levels - 1}"
        )
