"""What every sampler must do; a test class inherits `SamplerContract` and names its sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from raysearch.records import (
    Budget,
    CostModel,
    QuantizerSetup,
    SearchResult,
    SearchTrial,
    SensitivityTable,
    is_feasible,
    parse_budgets,
    trials_from_table,
    trials_to_table,
)
from tests.support.search_problems import Divergence, make_setup, make_table, search

BUDGETS = parse_budgets(["avg_bits<=4.5"])
TWO_BUDGETS = parse_budgets(["avg_bits<=4.5", "bops<=70%"])
"""Neither implies the other. A search under these takes ten times as long: its warm starts need a solver."""


@dataclass(frozen=True)
class Problem:
    """A setup and its table."""

    setup: QuantizerSetup
    table: SensitivityTable

    @classmethod
    def of_layers(cls, num_layers: int, weight_bits: tuple[int, ...] = (2, 4, 8)) -> Problem:
        """A random one; its layers' perturbations have much in common."""
        setup = make_setup(num_layers, weight_bits, (4, 8))
        return cls(setup, make_table(setup, coupling=1.0))

    def measure(self) -> Divergence:
        """What trials are measured by: not what the surrogate predicts."""
        return Divergence(self.table, disturbance=0.4)

    def search(
        self, sampler: str, evaluate: Any = None, budgets: tuple[Budget, ...] = BUDGETS, **options: Any
    ) -> SearchResult:
        """A search of a few batches of four."""
        settings: dict[str, Any] = {"num_trials": 24, "batch_size": 4, **options}
        return search(
            self.table, self.setup, budgets, evaluate or self.measure(), sampler=sampler, **settings
        )


def saved_and_loaded(trials: tuple[SearchTrial, ...]) -> tuple[SearchTrial, ...]:
    """Trials as a resumed run reads them."""
    return trials_from_table(trials_to_table(trials))


@dataclass(frozen=True)
class WatchedSearch:
    """A finished search, and the trials that were told after each of its batches."""

    result: SearchResult
    batches: list[tuple[SearchTrial, ...]]


class SamplerContract:
    """Feasible, measured once, repeatable, and the same search after an interruption at any batch."""

    sampler: str
    source = ""
    """What its trials are called, where that is not `sampler`."""
    problem = Problem.of_layers(5)
    num_trials = 24
    depends_on_seed = True
    first_resumed = 3
    """The first batch after which it is interrupted."""

    @classmethod
    def search(cls, evaluate: Any = None, **options: Any) -> SearchResult:
        return cls.problem.search(cls.sampler, evaluate, **{"num_trials": cls.num_trials, **options})

    @pytest.fixture(scope="class")
    @classmethod
    def watched(cls) -> WatchedSearch:
        batches: list[tuple[SearchTrial, ...]] = []
        return WatchedSearch(cls.search(on_batch=batches.append), batches)

    def test_every_trial_is_feasible(self, watched: WatchedSearch) -> None:
        model = CostModel(self.problem.setup)
        assert all(is_feasible(BUDGETS, model, trial.assignment) for trial in watched.result.trials)

    @pytest.mark.slow
    def test_every_trial_is_feasible_under_two_budgets(self) -> None:
        model = CostModel(self.problem.setup)
        trials = self.search(budgets=TWO_BUDGETS).trials
        assert (self.source or self.sampler) in {trial.source for trial in trials}
        assert all(is_feasible(TWO_BUDGETS, model, trial.assignment) for trial in trials)

    def test_the_same_seed_is_the_same_search_and_measures_nothing_twice(
        self, watched: WatchedSearch
    ) -> None:
        measure = self.problem.measure()
        assert self.search(measure) == watched.result
        assert measure.calls == len({trial.assignment.digest() for trial in watched.result.trials})

    def test_another_seed_is_another_search(self, watched: WatchedSearch) -> None:
        is_same = self.search(seed=1).trials == watched.result.trials
        assert is_same != self.depends_on_seed

    def test_it_proposes_something_of_its_own(self, watched: WatchedSearch) -> None:
        assert (self.source or self.sampler) in {trial.source for trial in watched.result.trials}

    def test_it_never_loses_to_a_warm_start(self, watched: WatchedSearch) -> None:
        assert min(watched.result.margins().values()) == 0

    def test_resumed_at_any_batch_it_is_the_same_search(self, watched: WatchedSearch) -> None:
        later = watched.batches[self.first_resumed :: 2]
        assert later
        for trials in later:
            assert self.search(previous=saved_and_loaded(trials)) == watched.result
