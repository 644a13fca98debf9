"""What a solver hands back: an assignment, its value, and how far from the best it can be."""

from __future__ import annotations

from dataclasses import dataclass

from raysearch.search.problem.space import IntArray


@dataclass(frozen=True)
class Solution:
    """A feasible assignment and a proven bound.

    Attributes:
        choices: int64 [L].
        value: of the objective.
        lower_bound: no feasible assignment has less.
    """

    choices: IntArray
    value: float
    lower_bound: float

    @property
    def gap(self) -> float:
        """(value − lower bound) / |value|: how much better another assignment might be; 0 is proven best."""
        distance = max(0.0, self.value - self.lower_bound)
        return distance / max(abs(self.value), 1e-300) if distance > 0 else 0.0
