"""A cost of an assignment as integers: a constant and one term for each quantizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from raysearch.records.point import FLOAT_BITS, QuantizationPoint
from raysearch.records.scheme import Scheme

Term = Callable[[QuantizationPoint, int, int], int]
"""What a quantizer adds at (its own bit-width, the bit-width of its input); 32 stands for float.

The point is the one that its scheme makes of it (`QuantizationPoint.at`), so it has that scheme's scales.
"""

Schemes = Mapping[str, Scheme]
"""Point id → its scheme."""


@dataclass(frozen=True)
class CostSum:
    """use = `constant` + Σ `term(point, its width, its input's width)` over `points`; an exact integer.

    Attributes:
        points: the quantizers that add something, in graph order.
        term: what each of them adds.
        constant: what no bit-width changes.
        is_coupled: whether a term depends on the width of the point's input as well as on its own.
        exact: point id → scheme to the use, where that is more than the sum as soon as a point is float;
            None: the sum holds for float points too.
    """

    points: tuple[QuantizationPoint, ...]
    term: Term
    constant: int = 0
    is_coupled: bool = False
    exact: Callable[[Schemes], int] | None = None

    def use(self, schemes: Schemes, unnamed: int = FLOAT_BITS) -> int:
        """The sum for point id → scheme; a point that is not named counts with `unnamed` bits."""
        if self.exact is not None:
            return self.exact(schemes)
        return self.constant + sum(term for _, term in self.terms(schemes, unnamed))

    def terms(self, schemes: Schemes, unnamed: int = FLOAT_BITS) -> Iterator[tuple[QuantizationPoint, int]]:
        """Each point with what it adds."""
        for point in self.points:
            source = schemes.get(point.input_point)
            input_width = unnamed if source is None else source.num_bits
            scheme = schemes.get(point.id)
            if scheme is None:
                yield point, self.term(point, unnamed, input_width)
            else:
                yield point, self.term(point.at(scheme), scheme.num_bits, input_width)


@dataclass(frozen=True)
class CostFormula:
    """How one kind of cost follows from the schemes of one setup.

    cost = use / `divisor`, or `dividend` / use for a cost that falls as widths grow; use is the greatest of
    `sums`.

    Attributes:
        sums: at least one; several where a cost is a peak, as memory is.
        divisor: what the use is divided by.
        dividend: what is divided by the use; None where the cost is a multiple of the use.
    """

    sums: tuple[CostSum, ...]
    divisor: int = 1
    dividend: int | None = None

    def of(self, schemes: Schemes, unnamed: int = FLOAT_BITS) -> float:
        """The cost for point id → scheme; a point that is not named counts with `unnamed` bits."""
        return self.cost(max(part.use(schemes, unnamed) for part in self.sums))

    def cost(self, use: int) -> float:
        """The cost of an integer use; NaN for the quotient with a use of 0."""
        if self.dividend is None:
            return use / self.divisor
        return self.dividend / use if use else math.nan

    def use_at(self, cost: float) -> float:
        """The use that has this cost, the inverse of `cost`; a cost is positive."""
        if self.dividend is None:
            return cost * self.divisor
        return self.dividend / cost
