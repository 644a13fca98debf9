"""What the search for the least cost has measured, and the cheapest assignment that holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from raysearch.errors import RunError
from raysearch.records import BitAssignment, Budget, MaxDrop, SearchTrial, drop_of
from raysearch.search.ask_tell import OnBatch
from raysearch.search.evaluator import Evaluator
from raysearch.search.problem.limits import make_limits
from raysearch.search.problem.space import IntArray
from raysearch.search.solvers.budget_solver import BudgetSolver
from raysearch.search.solvers.local_search import descend
from raysearch.search.summary import completed
from raysearch.search.trials import TrialMaker


@dataclass(frozen=True)
class DropLimit:
    """What must hold of an assignment: the metric drops no more than allowed.

    Attributes:
        max_drop: the most that it may get worse.
        float_value: the float model's value on the search's samples.
        maximize: whether more of the metric is better.
    """

    max_drop: MaxDrop
    float_value: float
    maximize: bool

    def drop(self, trial: SearchTrial) -> float:
        """How much worse than the float model a trial is."""
        return drop_of(trial.value, self.float_value, self.maximize)

    def is_kept(self, trial: SearchTrial) -> bool:
        """Whether a trial was measured whole, keeps its budgets, and its drop is allowed."""
        is_measured = bool(completed([trial]))
        return is_measured and self.max_drop.is_kept(self.drop(trial), self.float_value)


@dataclass
class LeastCostLog:
    """All that was measured for the least cost.

    Attributes:
        maker: makes the trials' records; its surrogate proposes assignments.
        evaluator: measures.
        kind: the cost that is minimised.
        limit: what must hold.
        on_batch: gets all trials after each measurement.
        trials: in number order.
    """

    maker: TrialMaker
    evaluator: Evaluator
    kind: str
    limit: DropLimit
    on_batch: OnBatch | None
    trials: list[SearchTrial] = field(default_factory=list)

    def solver_within(self, cost: float) -> BudgetSolver:
        """A solver of the budgets and a limit on the cost."""
        budgets = [*self.maker.budgets, self.cost_budget(cost)]
        return BudgetSolver(self.maker.space, make_limits(self.maker.space, budgets, self.maker.model))

    def cost_budget(self, cost: float) -> Budget:
        """A limit on the cost as a budget."""
        return Budget(self.kind, cost, False, f"{self.kind}<={cost:.17g}")

    def optimum(self, solver: BudgetSolver) -> IntArray:
        """The surrogate's optimum, additive and then by local search."""
        surrogate = self.maker.surrogate
        return descend(surrogate, solver, solver.exact(surrogate.option_costs).choices)

    def measure(self, proposals: Sequence[tuple[str, IntArray]]) -> list[SearchTrial]:
        """Measure (source, choices) on all samples; one trial each, known assignments left out."""
        known = {trial.assignment.digest() for trial in self.trials if not trial.is_stopped}
        new: dict[str, tuple[str, BitAssignment]] = {}
        for source, choices in proposals:
            assignment = self.maker.space.assignment(choices)
            digest = assignment.digest()
            if digest not in known:
                # The first source names it; its place is that of its last proposal.
                new[digest] = new.pop(digest, (source, assignment))
        first = len(self.trials)
        numbered = dict(enumerate(new.values(), start=first))
        results = self.evaluator({number: assignment for number, (_, assignment) in numbered.items()})
        trials = []
        for number, (source, assignment) in numbered.items():
            trials.append(self.maker.make(number, assignment, source, results[number]))
        self.add(trials)
        return trials

    def add(self, trials: Sequence[SearchTrial]) -> None:
        """Keep trials, and tell of them."""
        self.trials += trials
        if self.on_batch is not None:
            self.on_batch(tuple(self.trials))

    def best(self) -> SearchTrial | None:
        """The cheapest trial that holds, if any does; equal ones by drop, then by number."""
        holding = [trial for trial in self.trials if self.limit.is_kept(trial)]
        return min(holding, key=lambda t: (t.costs[self.kind], self.limit.drop(t), t.number), default=None)

    def cheapest(self) -> SearchTrial:
        """`best`, once it is known that a trial holds.

        Raises:
            RunError: none does.
        """
        best = self.best()
        if best is None:
            raise RunError(f"no measured assignment keeps {self.limit.max_drop.text}.")
        return best

    def least_cost(self) -> float:
        """The cost of the cheapest trial that holds."""
        return self.cheapest().costs[self.kind]
