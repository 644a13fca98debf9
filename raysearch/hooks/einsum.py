"""Equations of einsum: which dimensions of its two operands go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Einsum:
    """An equation of two operands.

    Attributes:
        operands: labels of each operand's dimensions; those of an ellipsis are digits.
        result: labels of the result.
        macs: the product of the sizes of all labels.
    """

    operands: tuple[str, str]
    result: str
    macs: int


def read_einsum(equation: object, shapes: Sequence[Sequence[int]]) -> Einsum | None:
    """Read an equation; None where it is of another number of operands, or takes a diagonal.

    Args:
        equation: such as "bte,ehd->bthd"; without an arrow the result has the labels that stand once.
        shapes: of the operands.

    Example:
        >>> read_einsum("...c,cd->...d", [(2, 5, 8), (8, 6)])
        Einsum(operands=('01c', 'cd'), result='01d', macs=480)
    """
    if not isinstance(equation, str) or len(shapes) != 2:
        return None
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != 2:
        return None
    named = [len(term.replace("...", "")) for term in terms]
    longest = max(len(shape) - count for shape, count in zip(shapes, named, strict=True))
    # An ellipsis of fewer dimensions stands for the last of them.
    spread = "".join(map(str, range(longest)))
    operands = []
    for term, count, shape in zip(terms, named, shapes, strict=True):
        operands.append(term.replace("...", spread[longest - (len(shape) - count) :]))
    if any(len(set(labels)) != len(labels) for labels in operands):
        return None
    if not arrow:
        both = "".join(operands)
        single = sorted({label for label in both if both.count(label) == 1} - set(spread))
        result = "..." + "".join(single)
    sizes: dict[str, int] = {}
    for labels, shape in zip(operands, shapes, strict=True):
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return Einsum((operands[0], operands[1]), result.replace("...", spread), prod(sizes.values()))
