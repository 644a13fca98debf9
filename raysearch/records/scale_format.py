"""The forms in which a weight's scales are stored."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScaleFormat:
    """One form of stored scales; every value of it is exact in float32.

    Attributes:
        name: as settings and quantization points name it.
        bits: of one scale.
        dtype: of stored scales, by safetensors' name; U8: of the stream that they are packed in.
        smallest: least scale, positive.
        largest: greatest scale.
        sharing: scales of neighbouring groups of a row that are integers times one float16.
        highest: the greatest of those integers; the least is 1, of minima 0.
    """

    name: str
    bits: int
    dtype: str
    smallest: float
    largest: float
    sharing: int = 1
    highest: int = 1

    def num_bytes(self, num_scales: int) -> int:
        """Bytes of so many scales."""
        return (num_scales * self.bits + 7) // 8

    def num_stored(self, num_scales: int) -> int:
        """Elements of the tensor that holds so many scales."""
        return self.num_bytes(num_scales) if self.sharing > 1 else num_scales


_FORMATS = (
    ScaleFormat("float32", 32, "F32", 2.0**-100, (2 - 2.0**-23) * 2.0**127),
    ScaleFormat("float16", 16, "F16", 2.0**-24, 65504.0),
    ScaleFormat("bfloat16", 16, "BF16", 2.0**-100, (2 - 2.0**-7) * 2.0**127),
    # Of 8 or 16 neighbours: integers of 4 to 8 bits and a float16, as GGUF's types of that name have them.
    ScaleFormat("q2_k", 5, "U8", 2.0**-24, 15 * 65504.0, sharing=16, highest=15),
    ScaleFormat("q3_k", 7, "U8", 2.0**-24, 31 * 65504.0, sharing=16, highest=31),
    ScaleFormat("q4_k", 8, "U8", 2.0**-24, 63 * 65504.0, sharing=8, highest=63),
    ScaleFormat("q5_k", 8, "U8", 2.0**-24, 63 * 65504.0, sharing=8, highest=63),
    ScaleFormat("q6_k", 9, "U8", 2.0**-24, 127 * 65504.0, sharing=16, highest=127),
)

SCALE_FORMATS = {scale_format.name: scale_format for scale_format in _FORMATS}
"""Every form by name."""

SCALE_DTYPES = tuple(name for name, scale_format in SCALE_FORMATS.items() if scale_format.sharing == 1)
"""Those that any scale may have."""
