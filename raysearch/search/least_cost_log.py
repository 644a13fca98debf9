"""What the search for the least cost has measured, and the cheapest assignment that holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from raysearch.records import (
    BitAssignment,
    Budget,
    CostModel,
    MaxDrop,
    SearchTrial,
    drop_of,
    excesses,
)
from raysearch.search.ask_tell import OnBatch
from raysearch.search.problem.limits import make_limits
from raysearch.search.problem.space import IntArray, OptionSpace
from raysearch.search.problem.surrogates import Surrogate
from raysearch.search.racing import Measured, MeasureShards, Race, ShardValues
from raysearch.search.solvers.decoder import Decoder
from raysearch.search.solvers.local_search import descend
from raysearch.search.summary import completed


class Remembered:
    """Measures what was not measured before; the same assignment comes round in every study."""

    def __init__(self, measure: MeasureShards) -> None:
        self._measure = measure
        self._known: dict[tuple[str, int], ShardValues] = {}

    def __call__(
        self, assignments: Mapping[int, BitAssignment], shards: Sequence[int]
    ) -> dict[int, dict[int, ShardValues]]:
        """See `MeasureShards`."""
        marks = {number: a.digest() for number, a in assignments.items()}
        open_shards: dict[tuple[int, ...], dict[str, int]] = {}
        for number, mark in marks.items():
            if missing := tuple(shard for shard in shards if (mark, shard) not in self._known):
                open_shards.setdefault(missing, {}).setdefault(mark, number)
        for missing, numbers in open_shards.items():
            got = self._measure({n: assignments[n] for n in numbers.values()}, missing)
            self._known.update(
                {(mark, shard): got[n][shard] for mark, n in numbers.items() for shard in missing}
            )
        return {number: {s: self._known[mark, s] for s in shards} for number, mark in marks.items()}


@dataclass
class LeastSoFar:
    """All that was measured for the least cost.

    Attributes:
        space: the options.
        model: the cost model.
        surrogate: proposes assignments.
        budgets: limits that hold as well.
        race: measures.
        kind: the cost that is minimised.
        max_drop: what must hold.
        maximize: whether more of the metric is better.
        float_value: the float model's.
        on_batch: told of all trials after each measurement.
        trials: in number order.
    """

    space: OptionSpace
    model: CostModel
    surrogate: Surrogate
    budgets: tuple[Budget, ...]
    race: Race
    kind: str
    max_drop: MaxDrop
    maximize: bool
    float_value: float
    on_batch: OnBatch | None
    trials: list[SearchTrial] = field(default_factory=list)

    def decoder(self, limit: float) -> Decoder:
        """A decoder of the budgets and a limit on the cost."""
        budgets = [*self.budgets, self.limit(limit)]
        return Decoder(self.space, make_limits(self.space, budgets, self.model))

    def limit(self, limit: float) -> Budget:
        """The limit on the cost as a budget."""
        return Budget(self.kind, limit, False, f"{self.kind}<={limit:.17g}")

    def optimum(self, decoder: Decoder) -> IntArray:
        """The surrogate's optimum, additive and then by local search."""
        return descend(self.surrogate, decoder, decoder.optimum(self.surrogate.option_costs).choices)

    def measure(self, named: Sequence[tuple[str, IntArray]]) -> list[SearchTrial]:
        """Measure on all samples; one trial each, assignments that have one already left out."""
        known = {trial.assignment.digest() for trial in self.trials if trial.state != "PRUNED"}
        fresh = {self.space.assignment(choices).digest(): (name, choices) for name, choices in named[::-1]}
        kept = [(n, c) for mark, (n, c) in reversed(fresh.items()) if mark not in known]
        first = len(self.trials)
        values = self.race({first + i: self.space.assignment(c) for i, (_, c) in enumerate(kept)})
        made = [self._trial(first + i, n, c, values[first + i]) for i, (n, c) in enumerate(kept)]
        self.add(made)
        return made

    def add(self, trials: Sequence[SearchTrial]) -> None:
        """Keep trials, and tell of them."""
        self.trials += trials
        if self.on_batch is not None:
            self.on_batch(tuple(self.trials))

    def drop(self, trial: SearchTrial) -> float:
        """How much worse than the float model a trial is."""
        return drop_of(trial.value, self.float_value, self.maximize)

    def holds(self, trial: SearchTrial) -> bool:
        """Whether a trial was measured whole and its drop is allowed."""
        return bool(completed([trial])) and self.max_drop.is_kept(self.drop(trial), self.float_value)

    def best(self) -> SearchTrial | None:
        """The cheapest trial that holds, if any does."""
        held = [trial for trial in self.trials if self.holds(trial)]
        return min(held, key=lambda t: (t.costs[self.kind], self.drop(t), t.number), default=None)

    def cheapest(self) -> SearchTrial:
        """The same, where one is known to hold."""
        best = self.best()
        assert best is not None
        return best

    def _trial(self, number: int, source: str, choices: IntArray, got: Measured) -> SearchTrial:
        assignment = self.space.assignment(choices)
        costs = self.model.costs(assignment)
        state = "COMPLETE" if math.isfinite(got.value) else "FAIL"
        return SearchTrial(
            number,
            assignment,
            costs,
            excesses(self.budgets, self.model, costs),
            got.value,
            float(self.surrogate.predict(choices)),
            source,
            state,
            got.num_samples,
            got.rounds if state == "COMPLETE" else {},
        )
