"""What stands beside the answer, on the same samples: uniform widths that fit, and its untrained form."""

from __future__ import annotations

from dataclasses import dataclass

from raysearch.artifacts.codecs import Metrics
from raysearch.pipeline.inputs import Inputs
from raysearch.pipeline.stages import make_recipe, validate
from raysearch.records import BitAssignment, QuantizerSetup, RangeTable, SearchResult

ROUNDED = "rounded"
"""The answer with the codes of the rounding table: neither refined nor trained, as the uniform one is."""


def best_uniform(search: SearchResult, setup: QuantizerSetup) -> tuple[str, BitAssignment] | None:
    """The measured assignment within the budgets, all of whose weights have one scheme, that is best.

    Returns:
        Its name, such as "uniform 4", and the assignment; None where no uniform one fits.
    """
    trials = search.uniform_trials(setup)
    if not trials:
        return None
    name, trial = trials[0]
    return name, trial.assignment


@dataclass(frozen=True)
class Baselines:
    """What the baselines are made of.

    Attributes:
        search: has the uniform trials.
        assignment: the answer.
        ranges: with the codes of the rounding table.
        is_changed: whether the answer was refined or trained; else `ROUNDED` is the answer itself.
    """

    search: SearchResult
    assignment: BitAssignment
    ranges: RangeTable
    is_changed: bool

    def measure(self, inputs: Inputs) -> Metrics:
        """Baseline → metrics on the validation data: of the best uniform assignment, of the answer `ROUNDED`.

        Cost: one pass over the validation data each.
        """
        assignments: dict[str, BitAssignment] = {}
        uniform = best_uniform(self.search, inputs.setup)
        if uniform is not None:
            name, assignment = uniform
            assignments[name] = assignment
        if self.is_changed:
            assignments[ROUNDED] = self.assignment
        return {
            name: validate(inputs, make_recipe(inputs, self.ranges, assignment).build().model)
            for name, assignment in assignments.items()
        }
