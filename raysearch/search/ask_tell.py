"""Ask, measure, tell: the batches of one study, from the first or from where an interrupted run stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from optuna.trial import Trial, TrialState

from raysearch.errors import RunError, StorageError
from raysearch.records import BitAssignment, Budget, CostModel, SearchTrial, excesses
from raysearch.search.optuna_bridge import (
    freeze_trial,
    make_distributions,
    make_study,
    own_system_attrs,
    quiet_optuna,
    reported,
    told_values,
    user_attributes,
)
from raysearch.search.problem.surrogates import Surrogate
from raysearch.search.racing import Measured, Race
from raysearch.search.samplers.make import MakeSampler
from raysearch.search.solvers.decoder import SMALL_SPACE, Decoder
from raysearch.search.summary import best_of, completed, ranked
from raysearch.search.warm_starts import WarmStart

Evaluate = Callable[[Mapping[int, BitAssignment]], Mapping[int, float]]
"""Measures a batch: trial number → assignment in, trial number → value out (NaN: it failed)."""

OnBatch = Callable[[tuple[SearchTrial, ...]], None]
"""Told all trials so far after each batch, so that they can be saved."""

PATIENCE = 32
"""Trials without a new assignment after which the search ends."""

FINALIST = "finalist"
"""Source of the trials that measure on all samples what was stopped before."""


class BatchSearch:
    """One study and what has been measured.

    Attributes:
        trials: the told trials, in number order.
        known: choices, as bytes → what was measured of them.
    """

    def __init__(
        self,
        decoder: Decoder,
        surrogate: Surrogate,
        model: CostModel,
        budgets: Sequence[Budget],
        samplers: MakeSampler,
        *,
        sampler: str,
        maximize: bool,
        front: str | None,
    ) -> None:
        self.decoder, self.surrogate, self.model, self.budgets = decoder, surrogate, model, budgets
        self.samplers, self.sampler, self.maximize, self.front = samplers, sampler, maximize, front
        self.space = decoder.space
        self.trials: list[SearchTrial] = []
        self.known: dict[bytes, Measured] = {}
        self.total, self.starts = 0, frozenset[bytes]()
        self.plan: Mapping[int, WarmStart] = {}
        self.distributions = make_distributions(self.space)
        feasible = decoder.feasible(SMALL_SPACE)
        self.num_feasible = math.inf if feasible is None else len(feasible)
        with quiet_optuna():
            self.study = make_study(maximize, front)

    def begin(
        self, plan: Mapping[int, WarmStart], total: int, previous: Sequence[SearchTrial], batch_size: int
    ) -> None:
        """Replay complete batches, and remember the values of the rest; `plan`: trial number → warm start."""
        self.total, self.plan = total, plan
        self.starts = frozenset(start.choices.tobytes() for start in plan.values())
        previous = sorted(previous, key=lambda trial: trial.number)
        if [trial.number for trial in previous] != list(range(len(previous))):
            raise StorageError("the saved trials are not numbered 0, 1, 2, …; start the search anew.")
        previous = [trial for trial in previous if trial.source != FINALIST]
        complete = len(previous) // batch_size * batch_size
        for trial in previous:
            choices = self.space.choices(trial.assignment)
            planned = plan.get(trial.number)
            other_start = planned is not None and choices.tolist() != planned.choices.tolist()
            if other_start or not self.decoder.is_feasible(choices):
                raise StorageError(
                    f"the saved trial {trial.number} belongs to another search (other budgets, sensitivity "
                    "or warm starts); start the search anew."
                )
            found = Measured(trial.value, trial.num_samples, trial.rounds, trial.state == "PRUNED")
            self.known.setdefault(choices.tobytes(), found)
        with quiet_optuna():
            for trial in previous[:complete]:
                self.study.add_trial(freeze_trial(trial, self.distributions, self.front))
        self.trials = list(previous[:complete])

    def loop(self, evaluate: Evaluate | Race, batch_size: int, on_batch: OnBatch | None) -> None:
        """Ask, measure and tell batches until the trials or the assignments are used up."""
        while not self._is_over(batch_size):
            batch = self._ask(min(batch_size, self.total - len(self.trials)))
            self._measure(batch, evaluate)
            self._tell(batch)
            if on_batch is not None:
                on_batch(tuple(self.trials))
            self._check_failures(batch_size)

    def finish(self, evaluate: Evaluate | Race, num_finalists: int, on_batch: OnBatch | None) -> None:
        """Measure the best stopped assignments on all samples, each as a trial of its own."""
        stopped = {t.assignment.digest(): t for t in reversed(self.trials) if t.state == "PRUNED"}
        finalists = ranked(list(stopped.values()), self.maximize)[:num_finalists]
        if not finalists:
            return
        with quiet_optuna():
            for trial in finalists:
                self._enqueue(trial.assignment, FINALIST)
                del self.known[self.space.choices(trial.assignment).tobytes()]
        batch = self._ask(len(finalists), planned=False)
        self._measure(batch, evaluate, stop=False)
        self._tell(batch)
        if on_batch is not None:
            on_batch(tuple(self.trials))

    def _enqueue(self, assignment: BitAssignment, source: str) -> None:
        self.study.enqueue_trial(dict(assignment.bits), user_attrs={"source": source})

    def _is_over(self, batch_size: int) -> bool:
        if len(self.trials) >= self.total:
            return True
        keys = [self.space.choices(trial.assignment).tobytes() for trial in self.trials]
        if len(set(keys)) >= self.num_feasible:
            return True
        recent = max(PATIENCE, 2 * batch_size)
        return len(keys) > recent and set(keys[-recent:]) <= set(keys[:-recent])

    def _ask(self, count: int, planned: bool = True) -> list[tuple[Trial, BitAssignment]]:
        with quiet_optuna():
            self.study.sampler = self.samplers(len(self.trials))
            batch = []
            for number in range(len(self.trials), len(self.trials) + count):
                if planned and (start := self.plan.get(number)) is not None:
                    self._enqueue(self.space.assignment(start.choices), start.source)
                batch.append(self.study.ask(self.distributions))
        # In group order, whichever order the parameters were set in.
        asked = [(trial, trial.params) for trial in batch]
        return [(t, BitAssignment({g: int(params[g]) for g in self.space.groups})) for t, params in asked]

    def _measure(
        self, batch: list[tuple[Trial, BitAssignment]], evaluate: Evaluate | Race, stop: bool = True
    ) -> None:
        new: dict[bytes, int] = {}
        for trial, assignment in batch:
            key = self.space.choices(assignment).tobytes()
            if key not in self.known:
                new.setdefault(key, trial.number)
        if not new:
            return
        by_number = {trial.number: assignment for trial, assignment in batch}
        asked = {number: by_number[number] for number in new.values()}
        values: Mapping[int, Measured]
        if isinstance(evaluate, Race):
            done = completed(self.trials) if stop and self.front is None else []
            best = best_of(done, self.maximize).assignment if done else None
            kept = {number for key, number in new.items() if key in self.starts}
            values = evaluate(asked, kept, best)
        else:
            values = {number: Measured(float(value)) for number, value in evaluate(asked).items()}
        if missing := sorted(set(asked) - set(values)):
            raise RunError(f"the evaluator gave no value for the trials {missing}.")
        self.known.update({key: values[number] for key, number in new.items()})

    def _tell(self, batch: list[tuple[Trial, BitAssignment]]) -> None:
        with quiet_optuna():
            for trial, assignment in batch:
                record = self._record(trial, assignment)
                for name, excess in record.excess.items():
                    trial.set_constraint(name, excess)
                for name, value in user_attributes(record).items():
                    trial.set_user_attr(name, value)
                if self.front is None:
                    for num_samples, value in reported(record).items():
                        trial.report(value, num_samples)
                values = told_values(record, self.front) if record.state == "COMPLETE" else None
                told = self.study.tell(trial, values, state=TrialState[record.state])
                self.trials.append(replace(record, system_attrs=own_system_attrs(told.system_attrs)))

    def _record(self, trial: Trial, assignment: BitAssignment) -> SearchTrial:
        choices = self.space.choices(assignment)
        costs = self.model.costs(assignment)
        measured = self.known[choices.tobytes()]
        finite = math.isfinite(measured.value)
        return SearchTrial(
            number=trial.number,
            assignment=assignment,
            costs=costs,
            excess=excesses(self.budgets, self.model, costs),
            value=measured.value if finite else math.nan,
            predicted=float(self.surrogate.predict(choices)),
            source=str(trial.user_attrs.get("source", self.sampler)),
            state=("PRUNED" if measured.stopped else "COMPLETE") if finite else "FAIL",
            num_samples=measured.num_samples,
            rounds=measured.rounds if finite else {},
        )

    def _check_failures(self, batch_size: int) -> None:
        failed = [trial for trial in self.trials if trial.state == "FAIL"]
        early = len(self.trials) < min(2 * batch_size, self.total)
        if len(failed) * 2 > len(self.trials) and not early:
            seen = ", ".join(f"{trial.number} ({trial.source})" for trial in failed[:5])
            raise RunError(
                f"{len(failed)} of {len(self.trials)} trials gave no finite value, among them {seen}. "
                "Check that the calibrated model gives finite outputs at the lowest widths, or allow only "
                "higher ones."
            )
