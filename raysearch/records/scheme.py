"""How one tensor is stored: bit-width, granularity, mode; written `4`, `4g64`, `3g32a`, `q6_k`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, total_ordering

from raysearch.errors import PlacementError
from raysearch.records.block_types import BLOCK_TYPES

LEAST_BITS, MOST_BITS = 2, 8

_FORM = re.compile(r"([1-9][0-9]*)(?:g([1-9][0-9]*))?(a?)")


@total_ordering
@dataclass(frozen=True, eq=False)
class Scheme:
    """One way to store the values of a quantizer.

    A plain scheme is a bit-width alone: granularity and mode are those of the quantization point. It equals
    that number, and hashes as it does, so a table keyed by schemes may be asked for a bit-width.

    Schemes are ordered by their bit-width, then from few scales to many, symmetric before asymmetric: 4, 4a,
    4g64, 4g64a, 4g32, q4_0. That is no order of cost: 3g16a takes more bits than 4.

    A type of GGUF is a scheme of its name: it says the bit-width, the groups, and how scales are stored.

    Attributes:
        num_bits: 2–8.
        group_size: inputs of a row that share a scale; 0 leaves the granularity to the point.
        is_asymmetric: whether each scale has a zero point; False leaves the mode to the point.
        block_type: name of a type of GGUF, of which the rest is; "": none.

    Raises:
        PlacementError: the bit-width is outside 2–8, the group size is negative, or the type has others.

    Example:
        >>> [str(Scheme.of(value)) for value in (4, "4g64", Scheme(3, 32, is_asymmetric=True))]
        ['4', '4g64', '3g32a']
    """

    num_bits: int
    group_size: int = 0
    is_asymmetric: bool = False
    block_type: str = ""

    def __post_init__(self) -> None:
        if not LEAST_BITS <= self.num_bits <= MOST_BITS:
            raise PlacementError(
                f"the scheme '{self}' has {self.num_bits} bits; a bit-width is {LEAST_BITS}–{MOST_BITS}."
            )
        if self.group_size < 0:
            raise PlacementError(
                f"the scheme '{self}' has groups of {self.group_size} inputs; give 1 or more."
            )
        if self.block_type:
            block_type = BLOCK_TYPES[self.block_type]
            if (self.num_bits, self.group_size) != (block_type.num_bits, block_type.group_size):
                raise PlacementError(f"write '{self.block_type}' for the scheme: the rest follows from it.")

    @classmethod
    def of(cls, value: int | str | Scheme) -> Scheme:
        """The scheme that a bit-width or a text stands for.

        Raises:
            PlacementError: it stands for none; says how a scheme is written.
        """
        if isinstance(value, Scheme):
            return value
        # Whatever else it is, its text is looked at: what is remembered must be able to be a key.
        return _scheme_of(value if isinstance(value, int | str) else str(value))

    @property
    def is_plain(self) -> bool:
        """Whether it is a bit-width and nothing else."""
        return not self.group_size and not self.is_asymmetric

    @property
    def as_json(self) -> int | str:
        """The number where it is plain, as assignments have it; else the text."""
        return self.num_bits if self.is_plain else str(self)

    @property
    def in_words(self) -> str:
        """As a message names it: "4 bits", or "the scheme 4g64"."""
        return f"{self.num_bits} bits" if self.is_plain else f"the scheme {self}"

    def nearest(self, schemes: Iterable[Scheme]) -> Scheme:
        """The one that is most like this one.

        Of the nearest width, the lower on a tie; then of the same mode; then of the nearest number of scales.

        Example:
            >>> str(Scheme.of("4g64").nearest(map(Scheme.of, ["3g64", "4", "4g128", "8"])))
            '4g128'
        """

        def distance(other: Scheme) -> tuple[int, int, bool, float, bool, Scheme]:
            return (
                abs(other.num_bits - self.num_bits),
                other.num_bits,
                other.is_asymmetric != self.is_asymmetric,
                abs(other._scales_per_input - self._scales_per_input),
                other.block_type != self.block_type,
                other,
            )

        return min(schemes, key=distance)

    @property
    def _scales_per_input(self) -> float:
        return 1 / self.group_size if self.group_size else 0.0

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Scheme):
            return self._order == other._order
        return self.is_plain and self.num_bits == other

    def __lt__(self, other: Scheme | int) -> bool:
        return self._order < Scheme.of(other)._order

    def __hash__(self) -> int:
        return hash(self.num_bits) if self.is_plain else hash(self._order)

    @property
    def _order(self) -> tuple[int, bool, int, bool, str]:
        groups = bool(self.group_size), -self.group_size
        return self.num_bits, *groups, self.is_asymmetric, self.block_type

    def __str__(self) -> str:
        """The text that `of` reads back."""
        if self.block_type:
            return self.block_type
        groups = f"g{self.group_size}" if self.group_size else ""
        mode = "a" if self.is_asymmetric else ""
        return f"{self.num_bits}{groups}{mode}"


# A saved search names each scheme a million times. Of the same type, since True is no 1.
@lru_cache(maxsize=1024, typed=True)
def _scheme_of(value: int | str) -> Scheme:
    if type(value) is int:
        return Scheme(value)
    name = str(value).lower()
    if name in BLOCK_TYPES:
        block_type = BLOCK_TYPES[name]
        return Scheme(block_type.num_bits, block_type.group_size, block_type=name)
    match = _FORM.fullmatch(str(value))
    if isinstance(value, bool) or match is None:
        raise PlacementError(
            f"'{value}' is no scheme. Write a bit-width, `g` and a group size where inputs share scales "
            f"in groups, and `a` for asymmetric: 4, 4g64 or 3g32a; or a type of GGUF: "
            f"{', '.join(BLOCK_TYPES)}."
        )
    num_bits, group_size, mode = match.groups()
    return Scheme(int(num_bits), int(group_size or 0), mode == "a")
