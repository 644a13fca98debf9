"""The Pareto front of things that have two values, both better when lower."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def pareto_front(items: Iterable[Item], values: Callable[[Item], tuple[float, float]]) -> list[Item]:
    """The items that no other is as good as in both values and better in one; of equal ones the first.

    Args:
        items: in the order in which equal ones are preferred.
        values: item → its two values, such as cost and loss; neither is NaN.

    Returns:
        The front by ascending first value, so by descending second one.

    Example:
        >>> pareto_front([(3, 1), (1, 5), (2, 5), (1, 5)], lambda point: point)
        [(1, 5), (3, 1)]
    """
    front: list[Item] = []
    least = float("inf")
    for item in sorted(items, key=values):
        _, second = values(item)
        if not front or second < least:
            front.append(item)
            least = second
    return front
