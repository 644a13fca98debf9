"""Scales and zero points of every quantizer at every bit-width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from raysearch.errors import StorageError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True)
class QuantizerRange:
    """Affine parameters of one quantizer at one bit-width.

    A stored code q in [quant_min, quant_max] stands for the value (q − zero_point)·scale.

    Attributes:
        scale: float32, shape [num_scales], positive.
        zero_point: int32, shape [num_scales]; all 0 for a symmetric quantizer.
        signed: whether the codes are signed: weights, or activations with negative values.
    """

    scale: FloatArray
    zero_point: IntArray
    signed: bool

    def __post_init__(self) -> None:
        if not np.isfinite(self.scale).all() or (self.scale <= 0).any():
            raise ValueError(f"scales must be finite and positive, got {self.scale}")


@dataclass(frozen=True)
class RangeTable:
    """Ranges keyed by (quantizer id, bit-width)."""

    ranges: Mapping[tuple[str, int], QuantizerRange]

    def __getitem__(self, key: tuple[str, int]) -> QuantizerRange:
        return self.ranges[key]

    def to_bytes(self) -> bytes:
        """The table in the safetensors format; `from_bytes` reads it back."""
        tensors: dict[str, np.ndarray] = {}
        for (point, bits), value in self.ranges.items():
            # safetensors writes memory as it lies, so a strided array would come back scrambled.
            tensors[f"{point}|{bits}|scale"] = np.asarray(value.scale, order="C")
            tensors[f"{point}|{bits}|zero_point"] = np.asarray(value.zero_point, order="C")
            tensors[f"{point}|{bits}|signed"] = np.array([value.signed], dtype=np.uint8)
        return bytes(save(tensors))

    @classmethod
    def from_bytes(cls, data: bytes) -> RangeTable:
        """Read what `to_bytes` wrote.

        Raises:
            StorageError: the bytes are no range table.
        """
        try:
            tensors = load(data)
            ranges: dict[tuple[str, int], QuantizerRange] = {}
            for key in sorted(tensors):
                point, bits, field = key.rsplit("|", 2)
                if field == "scale":
                    ranges[point, int(bits)] = QuantizerRange(
                        tensors[key],
                        tensors[f"{point}|{bits}|zero_point"],
                        bool(tensors[f"{point}|{bits}|signed"][0]),
                    )
        except (SafetensorError, KeyError, ValueError, IndexError) as error:
            raise StorageError(f"ranges.safetensors is damaged: {error}. Start the run anew.") from error
        return cls(ranges)
