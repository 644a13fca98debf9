"""How large model.safetensors is: the tensors that are no quantized weight, the packed ones, the header."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from raysearch.records.dtypes import STORED_DTYPES
from raysearch.records.point import FLOAT_BITS, QuantizationPoint
from raysearch.records.scale_format import SCALE_FORMATS
from raysearch.records.scheme import Scheme
from raysearch.records.setup import QuantizerSetup, StoredTensor

ZERO_POINT_BYTES = 1
_ENDS = '{"__metadata__":{"format":"pt"}}'
_LENGTH_BYTES = 8
_ALIGNMENT = 8


def packed_bytes(point: QuantizationPoint, num_bits: int) -> int:
    """Bytes of one stored weight: its codes, bit-packed, its scales in their format, and int8 zero points.

    ⌈n·b/8⌉ + 4·(number of scales) + (number of zero points, none if symmetric), 2 a scale in half precision;
    minima take as much as scales. A float weight takes 4·n.
    Scales and zero points are those of the point, so it has to be what the scheme makes of it.
    """
    if num_bits == FLOAT_BITS:
        return 4 * point.num_elements
    offsets = ZERO_POINT_BYTES * point.num_zero_points + point.minimum_bytes
    return _codes(point, num_bits) + point.scale_bytes + offsets


@dataclass(frozen=True)
class FileSize:
    """Bytes of model.safetensors as the sum of a constant and a part for each weight.

    size = `constant` + Σ `part(weight, scheme)`, for assignments that quantize every weight. It is never
    below the file, and above it by the header's padding (7 bytes at most) and by digits of offsets: those are
    counted as they are with every tensor as large as any scheme makes it. `of` takes any assignment, and is
    exact where a weight stays float.

    Where the setup does not say what else is stored (`QuantizerSetup.stored` is None), only weights count,
    without a header.

    The header is JSON, one entry a tensor: name, type, shape, and offsets, `{"x":{"dtype":"U8","shape":[9],
    "data_offsets":[0,9]}}`, padded to 8 bytes (https://github.com/huggingface/safetensors).
    """

    setup: QuantizerSetup

    @cached_property
    def constant(self) -> int:
        """What no scheme changes: all other tensors, and the header but for what `part` counts of it."""
        if self.setup.stored is None:
            return 0
        tensors = list(self.setup.stored)
        optional: set[str] = set()
        counted_by_part = 0
        for name, point in self._weights.items():
            codes, scales, zeros, _ = self._largest[name]
            tensors += _tensors_of(point, codes, scales, zeros)
            counted_by_part += _digits(codes)
            if point.num_zero_points:
                counted_by_part += _digits(zeros) - _digits(point.num_zero_points)
            else:
                optional.add(_zero_point_name(point))
        header = _header_bytes(tensors, optional, self._fixed_offset) - counted_by_part
        others = sum(tensor.num_bytes for tensor in self.setup.stored)
        return _LENGTH_BYTES + header + (_ALIGNMENT - 1) + others

    def part(self, point: QuantizationPoint, num_bits: int) -> int:
        """What a weight adds at a width below 32, the point being what the scheme makes of it."""
        if self.setup.stored is None:
            return packed_bytes(point, num_bits)
        plain = self._weights[point.id]
        header = _digits(_codes(point, num_bits)) + _scale_characters(point) - _scale_characters(plain)
        header += self._zero_point_entry(point) - self._zero_point_entry(plain)
        header += self._minimum_entry(point)
        return packed_bytes(point, num_bits) + header

    def of(self, schemes: Mapping[str, Scheme]) -> int:
        """Bytes of the file for point id → scheme; a weight that is not named is float.

        With no scheme at all it is the float model's file, which holds no scales of activations either.
        """
        stored: list[tuple[QuantizationPoint, int]] = []
        for name, point in self._weights.items():
            scheme = schemes.get(name)
            if scheme is None:
                stored.append((point, FLOAT_BITS))
            else:
                stored.append((point.at(scheme), scheme.num_bits))
        if all(num_bits != FLOAT_BITS for _, num_bits in stored):
            return self.constant + sum(self.part(*weight) for weight in stored)
        if self.setup.stored is None:
            return sum(packed_bytes(*weight) for weight in stored)
        tensors = [tensor for tensor in self.setup.stored if schemes or not tensor.is_quantizer]
        for point, num_bits in stored:
            tensors += _parts(point, num_bits)
        header = -(-_header_bytes(tensors) // _ALIGNMENT) * _ALIGNMENT
        return _LENGTH_BYTES + header + sum(tensor.num_bytes for tensor in tensors)

    @cached_property
    def _weights(self) -> dict[str, QuantizationPoint]:
        return self.setup.of_kind("weight")

    @cached_property
    def _largest(self) -> dict[str, tuple[int, int, int, int]]:
        """Weight → the most bytes of codes, scales, zero points and minima that any of its schemes has."""
        schemes = {point: group.schemes for group in self.setup.groups.values() for point in group.points}
        largest: dict[str, tuple[int, int, int, int]] = {}
        for name, point in self._weights.items():
            counts = []
            for scheme in schemes[name]:
                effective = point.at(scheme)
                codes = _codes(point, scheme.num_bits)
                beside = (effective.scale_bytes, effective.num_zero_points, effective.minimum_bytes)
                counts.append((codes, *beside))
            codes, scales, zeros, minima = map(max, zip(*counts, strict=True))
            largest[name] = (codes, scales, zeros, minima)
        return largest

    @cached_property
    def _offset_digits(self) -> int:
        """Digits of the greatest offset that any assignment leads to."""
        total = sum(tensor.num_bytes for tensor in self.setup.stored or ())
        for codes, scales, zeros, minima in self._largest.values():
            total += codes + scales + ZERO_POINT_BYTES * zeros + minima
        return _digits(total)

    @cached_property
    def _fixed_offset(self) -> int | None:
        """What every offset is counted as, where the order of the tensors depends on the schemes; else None.

        Tensors lie in the order of their types, and schemes may store scales in several.
        """
        for group in self.setup.groups.values():
            for name in group.points:
                point = self.setup.points[name]
                if any(point.at(scheme).scale_format != point.scale_format for scheme in group.schemes):
                    return int(10**self._offset_digits - 1)
        return None

    def _zero_point_entry(self, point: QuantizationPoint) -> int:
        """The most that the zero points of a weight take of the header."""
        count = point.num_zero_points
        if not count:
            return 0
        most = 10**self._offset_digits - 1
        tensor = StoredTensor(_zero_point_name(point), "I8", (count,), ZERO_POINT_BYTES * count)
        return len(_header_entry(tensor, most, most).encode())

    def _minimum_entry(self, point: QuantizationPoint) -> int:
        """The most that the minima of a weight take of the header."""
        most = 10**self._offset_digits - 1
        return sum(len(_header_entry(tensor, most, most).encode()) for tensor in _minima_of(point))


def _parts(point: QuantizationPoint, num_bits: int) -> Iterable[StoredTensor]:
    """The tensors that the packed target stores of one weight."""
    if num_bits == FLOAT_BITS:
        return [StoredTensor(point.id, "F32", point.shape, 4 * point.num_elements)]
    weight = _tensors_of(point, _codes(point, num_bits), point.scale_bytes, point.num_zero_points)
    return [*weight, *_minima_of(point)]


def _tensors_of(point: QuantizationPoint, codes: int, scales: int, zeros: int) -> Iterable[StoredTensor]:
    yield StoredTensor(f"{point.id}.packed", "U8", (codes,), codes)
    stored = SCALE_FORMATS[point.scale_format]
    yield StoredTensor(f"{point.id}.scale", stored.dtype, (stored.num_stored(point.num_scales),), scales)
    if zeros:
        yield StoredTensor(_zero_point_name(point), "I8", (zeros,), ZERO_POINT_BYTES * zeros)


def _minima_of(point: QuantizationPoint) -> list[StoredTensor]:
    """The tensor of a weight's minima, where it has any."""
    if not point.minimum_bytes:
        return []
    stored = SCALE_FORMATS[point.scale_format]
    count = stored.num_stored(point.num_scales)
    return [StoredTensor(f"{point.id}.minimum", stored.dtype, (count,), point.minimum_bytes)]


def _scale_characters(point: QuantizationPoint) -> int:
    """What the header says of a weight's scales: their type and number."""
    stored = SCALE_FORMATS[point.scale_format]
    return len(stored.dtype) + _digits(stored.num_stored(point.num_scales))


def _zero_point_name(point: QuantizationPoint) -> str:
    return f"{point.id}.zero_point"


def _codes(point: QuantizationPoint, num_bits: int) -> int:
    return (point.num_elements * num_bits + 7) // 8


def _digits(number: int) -> int:
    return len(str(number))


def _header_bytes(
    tensors: Iterable[StoredTensor], uncounted: Container[str] = (), offset: int | None = None
) -> int:
    """Length of the header before it is padded.

    Args:
        tensors: of the file.
        uncounted: names whose entries are not to be counted.
        offset: what every offset is counted as; None: its own.
    """

    def place(tensor: StoredTensor) -> tuple[int, bytes]:
        order = STORED_DTYPES.index(tensor.dtype) if tensor.dtype in STORED_DTYPES else len(STORED_DTYPES)
        return order, tensor.name.encode()

    total, begin = len(_ENDS), 0
    for tensor in sorted(tensors, key=place):
        end = begin + tensor.num_bytes
        if tensor.name not in uncounted:
            ends = (begin, end) if offset is None else (offset, offset)
            total += len(_header_entry(tensor, *ends).encode())
        begin = end
    return total


def _header_entry(tensor: StoredTensor, begin: int, end: int) -> str:
    """What a header says of one tensor, with the comma before it."""
    name = json.dumps(tensor.name, ensure_ascii=False)
    shape = ",".join(map(str, tensor.shape))
    return f',{name}:{{"dtype":"{tensor.dtype}","shape":[{shape}],"data_offsets":[{begin},{end}]}}'
