"""What the search asks for measured values: one protocol, with or without stopping early."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from raysearch.records import BitAssignment


@dataclass(frozen=True)
class Measured:
    """What is known of an assignment.

    Attributes:
        value: its mean, or the estimate of it when it was stopped; NaN when it is not finite.
        num_samples: how many samples were measured; 0 when they were not counted.
        rounds: number of samples → mean on them, after each round.
        stopped: whether it was stopped early.
    """

    value: float
    num_samples: int = 0
    rounds: Mapping[int, float] = field(default_factory=dict)
    stopped: bool = False


class Evaluator(Protocol):
    """Measures a batch of assignments; `Race` and `PlainEvaluator` are evaluators."""

    def __call__(
        self,
        assignments: Mapping[int, BitAssignment],
        protected: Collection[int] = (),
        best: BitAssignment | None = None,
    ) -> Mapping[int, Measured]:
        """Measure a batch.

        Args:
            assignments: trial number → assignment.
            protected: numbers that are never stopped, such as the warm starts.
            best: the best assignment so far, measured on all samples; None: nothing is stopped.

        Returns:
            Trial number → what was measured of it.
        """
        ...


@dataclass(frozen=True)
class PlainEvaluator:
    """An evaluator of a function that gives one value each; nothing is stopped, no samples are counted.

    Attributes:
        function: trial number → assignment in, trial number → value out (NaN: it failed).
    """

    function: Callable[[Mapping[int, BitAssignment]], Mapping[int, float]]

    def __call__(
        self,
        assignments: Mapping[int, BitAssignment],
        protected: Collection[int] = (),
        best: BitAssignment | None = None,
    ) -> dict[int, Measured]:
        """See `Evaluator`."""
        values = self.function(assignments)
        return {number: Measured(float(value)) for number, value in values.items()}
