"""The forms in which a weight's scales are stored."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScaleFormat:
    """One form of stored scales; every value of it is exact in float32.

    Attributes:
        name: as settings and quantization points name it.
        bits: of one scale.
        dtype: of stored scales, by safetensors' name.
        smallest: least scale, positive.
        largest: greatest scale.
    """

    name: str
    bits: int
    dtype: str
    smallest: float
    largest: float

    def num_bytes(self, num_scales: int) -> int:
        """Bytes of so many scales."""
        return (num_scales * self.bits + 7) // 8


_FORMATS = (
    ScaleFormat("float32", 32, "F32", 2.0**-100, (2 - 2.0**-23) * 2.0**127),
    ScaleFormat("float16", 16, "F16", 2.0**-24, 65504.0),
    ScaleFormat("bfloat16", 16, "BF16", 2.0**-100, (2 - 2.0**-7) * 2.0**127),
)

SCALE_FORMATS = {scale_format.name: scale_format for scale_format in _FORMATS}
"""Every form by name."""
