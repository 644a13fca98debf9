"""How large model.safetensors is: the tensors that are no quantized weight, the packed ones, the header."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from raysearch.records.dtypes import STORED_DTYPES
from raysearch.records.setup import FLOAT_BITS, QuantizationPoint, QuantizerSetup, StoredTensor

SCALE_BYTES = 4
ZERO_POINT_BYTES = 1
_ENDS = '{"__metadata__":{"format":"pt"}}'
_LENGTH_BYTES = 8
_ALIGNMENT = 8


def packed_bytes(point: QuantizationPoint, num_bits: int) -> int:
    """Bytes of one stored weight: its codes, bit-packed, its float32 scales, and int8 zero points.

    ⌈n·b/8⌉ + 4·(number of scales) + (number of zero points, none if symmetric); a float weight takes 4·n.
    """
    if num_bits == FLOAT_BITS:
        return 4 * point.num_elements
    return _codes(point, num_bits) + SCALE_BYTES * point.num_scales + ZERO_POINT_BYTES * point.num_zero_points


@dataclass(frozen=True)
class FileSize:
    """Bytes of model.safetensors as the sum of a constant and a part for each weight.

    size = `constant` + Σ `part(weight, width)`, for assignments that quantize every weight. It is never below
    the file, and above it by the header's padding (7 bytes at most) and by digits of offsets: those are
    counted as they are with every weight at its widest. `of` takes any assignment, and is exact where a
    weight stays float.

    Where the setup does not say what else is stored (`QuantizerSetup.stored` is None), only weights count,
    without a header.

    The header is JSON, one entry a tensor: name, type, shape, and offsets, `{"x":{"dtype":"U8","shape":[9],
    "data_offsets":[0,9]}}`, padded to 8 bytes (https://github.com/huggingface/safetensors).
    """

    setup: QuantizerSetup

    @cached_property
    def constant(self) -> int:
        """What no width changes: all other tensors, and the header but for the shapes of the codes."""
        if self.setup.stored is None:
            return 0
        widest = {p: g.bit_widths[-1] for g in self.setup.groups.values() for p in g.points}
        # `part` counts the digits of a weight's shape, at the width that it has.
        shapes = sum(_digits(_codes(point, widest[name])) for name, point in self._weights.items())
        header = _header_bytes(self._tensors(widest)) - shapes
        others = sum(tensor.num_bytes for tensor in self.setup.stored)
        return _LENGTH_BYTES + header + (_ALIGNMENT - 1) + others

    def part(self, point: QuantizationPoint, num_bits: int) -> int:
        """What a weight adds at a width below 32."""
        shape = 0 if self.setup.stored is None else _digits(_codes(point, num_bits))
        return packed_bytes(point, num_bits) + shape

    def of(self, bits: Mapping[str, int]) -> int:
        """Bytes of the file for point id → width; a weight that is not named is float.

        With no width at all it is the float model's file, which holds no scales of activations either.
        """
        widths = {name: bits.get(name, FLOAT_BITS) for name in self._weights}
        if FLOAT_BITS not in widths.values():
            return self.constant + sum(self.part(p, widths[name]) for name, p in self._weights.items())
        if self.setup.stored is None:
            return sum(packed_bytes(p, widths[name]) for name, p in self._weights.items())
        tensors = self._tensors(widths, with_quantizers=bool(bits))
        header = -(-_header_bytes(tensors) // _ALIGNMENT) * _ALIGNMENT
        return _LENGTH_BYTES + header + sum(tensor.num_bytes for tensor in tensors)

    @cached_property
    def _weights(self) -> dict[str, QuantizationPoint]:
        return self.setup.of_kind("weight")

    def _tensors(self, widths: Mapping[str, int], with_quantizers: bool = True) -> list[StoredTensor]:
        tensors = [t for t in self.setup.stored or () if with_quantizers or not t.is_quantizer]
        for name, point in self._weights.items():
            tensors += _parts(point, widths[name])
        return tensors


def _parts(point: QuantizationPoint, num_bits: int) -> Iterable[StoredTensor]:
    """The tensors that the packed target stores of one weight."""
    if num_bits == FLOAT_BITS:
        yield StoredTensor(point.id, "F32", point.shape, 4 * point.num_elements)
        return
    codes, scales, zeros = _codes(point, num_bits), point.num_scales, point.num_zero_points
    yield StoredTensor(f"{point.id}.packed", "U8", (codes,), codes)
    yield StoredTensor(f"{point.id}.scale", "F32", (scales,), SCALE_BYTES * scales)
    if zeros:
        yield StoredTensor(f"{point.id}.zero_point", "I8", (zeros,), ZERO_POINT_BYTES * zeros)


def _codes(point: QuantizationPoint, num_bits: int) -> int:
    return (point.num_elements * num_bits + 7) // 8


def _digits(number: int) -> int:
    return len(str(number))


def _header_bytes(tensors: Iterable[StoredTensor]) -> int:
    """Length of the header before it is padded."""

    def place(tensor: StoredTensor) -> tuple[int, bytes]:
        order = STORED_DTYPES.index(tensor.dtype) if tensor.dtype in STORED_DTYPES else len(STORED_DTYPES)
        return order, tensor.name.encode()

    total, begin = len(_ENDS), 0
    for tensor in sorted(tensors, key=place):
        end = begin + tensor.num_bytes
        name = json.dumps(tensor.name, ensure_ascii=False)
        shape = ",".join(map(str, tensor.shape))
        entry = f',{name}:{{"dtype":"{tensor.dtype}","shape":[{shape}],"data_offsets":[{begin},{end}]}}'
        total, begin = total + len(entry.encode()), end
    return total
