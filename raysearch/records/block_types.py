"""GGUF's quantized types: how a block of a row is laid out, as numbers that costs and placement need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class BlockType:
    """A type of the GGUF format: blocks of a row, each of groups of inputs that share a scale.

    A value is d·c·q, or d·c·q − e·m where the type has minima: d and e are float16 of the block, c and m
    small integers of the group, q the code. Blocks of 32 are one group and hold no c: it is 1.

    Attributes:
        name: as llama.cpp calls it, in lower case.
        num_bits: of a code.
        group_size: inputs that share a scale.
        block_size: inputs of a block; a row holds only entire blocks.
        block_bytes: bytes of a block, scales included.
        highest_scale: the greatest integer c of a group; 1: groups have none of their own.
        has_minima: whether groups have minima m, of the range of c, and codes have no sign.
    """

    name: str
    num_bits: int
    group_size: int
    block_size: int
    block_bytes: int
    highest_scale: int = 1
    has_minima: bool = False

    @property
    def scale_format(self) -> str:
        """The form in which its scales are stored, of `SCALE_FORMATS`."""
        return "float16" if self.highest_scale == 1 else self.name

    @property
    def groups(self) -> int:
        """Groups of a block."""
        return self.block_size // self.group_size

    @property
    def bits_per_weight(self) -> float:
        """Stored bits, scales included."""
        return 8 * self.block_bytes / self.block_size

    def row_bytes(self, num_inputs: int) -> int:
        """Bytes of a row.

        Raises:
            ValueError: the row does not consist of blocks.
        """
        if num_inputs % self.block_size:
            raise ValueError(f"a row of {num_inputs} inputs holds no {self.name} blocks of {self.block_size}")
        return num_inputs // self.block_size * self.block_bytes


_TYPES = (
    BlockType("q2_k", 2, 16, 256, 84, highest_scale=15, has_minima=True),
    BlockType("q3_k", 3, 16, 256, 110, highest_scale=31),
    BlockType("q4_0", 4, 32, 32, 18),
    BlockType("q4_k", 4, 32, 256, 144, highest_scale=63, has_minima=True),
    BlockType("q5_0", 5, 32, 32, 22),
    BlockType("q5_k", 5, 32, 256, 176, highest_scale=63, has_minima=True),
    BlockType("q6_k", 6, 16, 256, 210, highest_scale=127),
    BlockType("q8_0", 8, 32, 32, 34),
)

BLOCK_TYPES: Mapping[str, BlockType] = {block_type.name: block_type for block_type in _TYPES}
"""Every type by name, in the order of bits."""
