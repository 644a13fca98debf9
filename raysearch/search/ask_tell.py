"""Ask, measure, tell: the batches of one study, from the first or from where an interrupted run stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import optuna
from optuna.trial import Trial

from raysearch.config import SearchConfig
from raysearch.errors import RunError, StorageError
from raysearch.records import BitAssignment, SearchTrial
from raysearch.search.evaluator import Evaluator, Measured
from raysearch.search.optuna_bridge import (
    freeze_trial,
    intermediate_values,
    make_study,
    objective_values,
    quiet_optuna,
    sampler_attributes,
    user_attributes,
)
from raysearch.search.problem.space import IntArray
from raysearch.search.samplers.base import make_distributions
from raysearch.search.samplers.make import MakeSampler
from raysearch.search.solvers.budget_solver import SMALL_SPACE, BudgetSolver
from raysearch.search.summary import best_of, completed, ranked
from raysearch.search.trials import TrialMaker
from raysearch.search.warm_starts import WarmStart

OnBatch = Callable[[tuple[SearchTrial, ...]], None]
"""Gets all trials so far after each batch, so that they can be saved."""

PATIENCE = 32
"""Trials without a new assignment after which the search ends."""

FINALIST = "finalist"
"""Source of the trials that measure on all samples what was stopped before."""

Batch = list[tuple[Trial, BitAssignment]]


@dataclass(frozen=True)
class TrialLog:
    """What a search continues, and who hears of its trials.

    Attributes:
        previous: trials of an interrupted run with the same other arguments.
        on_batch: called after each batch.
    """

    previous: Sequence[SearchTrial] = ()
    on_batch: OnBatch | None = None


@dataclass(frozen=True)
class Schedule:
    """When the warm starts come, and when the search ends.

    Attributes:
        starts: trial number → warm start; the sampler proposes the others.
        num_trials: trials in all, without the finalists.
    """

    starts: Mapping[int, WarmStart]
    num_trials: int


class BatchSearch:
    """One study and what has been measured.

    Args:
        solver: the limits.
        maker: makes the trials' records.
        samplers: gives each batch its sampler.
        settings: batch size, direction, front, finalists.
        log: what is continued, and who hears of new trials.

    Attributes:
        trials: the told trials, in number order.
    """

    def __init__(
        self,
        solver: BudgetSolver,
        maker: TrialMaker,
        samplers: MakeSampler,
        settings: SearchConfig,
        log: TrialLog,
    ) -> None:
        self.trials: list[SearchTrial] = []
        self._solver = solver
        self._maker = maker
        self._space = maker.space
        self._samplers = samplers
        self._settings = settings
        self._log = log
        self._schedule = Schedule({}, 0)
        # Choices, as bytes → what was measured of them.
        self._measured: dict[bytes, Measured] = {}
        # The choices of the told trials, and the number of the last one that was new.
        self._told: set[bytes] = set()
        self._last_new = -1
        self._distributions = make_distributions(self._space)
        feasible = solver.feasible_choices(SMALL_SPACE)
        self._num_feasible = math.inf if feasible is None else len(feasible)
        with quiet_optuna():
            self._study = make_study(settings.maximize, settings.front_kind)

    def measured(self, choices: IntArray) -> Measured | None:
        """What was measured of choices [L], if anything was."""
        return self._measured.get(choices.tobytes())

    def begin(self, schedule: Schedule) -> None:
        """Replay the complete batches of the log, and remember the values of the rest.

        Raises:
            StorageError: the logged trials are of another search.
        """
        self._schedule = schedule
        previous = sorted(self._log.previous, key=lambda trial: trial.number)
        if [trial.number for trial in previous] != list(range(len(previous))):
            raise StorageError("the saved trials are not numbered 0, 1, 2, …; start the search anew.")
        # Finalists come again in the end, and are answered from what is remembered.
        previous = [trial for trial in previous if trial.source != FINALIST]
        for trial in previous:
            choices = self._space.choices(trial.assignment)
            planned = schedule.starts.get(trial.number)
            is_other_start = planned is not None and choices.tolist() != planned.choices.tolist()
            if is_other_start or not self._solver.is_feasible(choices):
                raise StorageError(
                    f"the saved trial {trial.number} belongs to another search (other budgets, sensitivity "
                    "or warm starts); start the search anew."
                )
            measured = Measured(trial.value, trial.num_samples, trial.rounds, trial.is_stopped)
            self._measured.setdefault(choices.tobytes(), measured)
        batch_size = self._settings.batch_size
        num_complete = len(previous) // batch_size * batch_size
        for trial in previous[:num_complete]:
            self._add(trial)
        with quiet_optuna():
            for trial in self.trials:
                frozen = freeze_trial(trial, self._distributions, self._settings.front_kind)
                self._study.add_trial(frozen)

    def loop(self, evaluator: Evaluator) -> None:
        """Ask, measure and tell batches until the trials or the assignments are used up.

        Raises:
            RunError: more than half of the trials failed, or a value is missing.
        """
        while not self._is_over():
            num_left = self._schedule.num_trials - len(self.trials)
            batch = self._ask(min(self._settings.batch_size, num_left))
            self._measure(batch, evaluator)
            self._tell(batch)
            self._check_failures()

    def finish(self, evaluator: Evaluator) -> None:
        """Measure the best stopped assignments on all samples, each as a trial of its own."""
        stopped = {t.assignment.digest(): t for t in reversed(self.trials) if t.is_stopped}
        by_estimate = ranked(list(stopped.values()), self._settings.maximize)
        finalists = by_estimate[: self._settings.num_finalists]
        if not finalists:
            return
        with quiet_optuna():
            for trial in finalists:
                self._enqueue(trial.assignment, FINALIST)
                # Forget the estimate, so that it is measured again.
                del self._measured[self._key(trial.assignment)]
        batch = self._ask(len(finalists), with_starts=False)
        self._measure(batch, evaluator, can_stop=False)
        self._tell(batch)

    def _key(self, assignment: BitAssignment) -> bytes:
        return self._space.choices(assignment).tobytes()

    def _enqueue(self, assignment: BitAssignment, source: str) -> None:
        self._study.enqueue_trial(dict(assignment.as_json), user_attrs={"source": source})

    def _is_over(self) -> bool:
        if len(self.trials) >= self._schedule.num_trials:
            return True
        if len(self._told) >= self._num_feasible:
            return True
        recent = max(PATIENCE, 2 * self._settings.batch_size)
        return len(self.trials) > recent and self._last_new < len(self.trials) - recent

    def _add(self, trial: SearchTrial) -> None:
        key = self._key(trial.assignment)
        if key not in self._told:
            self._told.add(key)
            self._last_new = len(self.trials)
        self.trials.append(trial)

    def _ask(self, count: int, with_starts: bool = True) -> Batch:
        """The next trials of the study with their assignments; none of the batch knows another's value."""
        first = len(self.trials)
        trials = []
        with quiet_optuna():
            self._study.sampler = self._samplers(first)
            for number in range(first, first + count):
                start = self._schedule.starts.get(number) if with_starts else None
                if start is not None:
                    self._enqueue(self._space.assignment(start.choices), start.source)
                trials.append(self._study.ask(self._distributions))
        return [(trial, self._assignment_of(trial)) for trial in trials]

    def _assignment_of(self, trial: Trial) -> BitAssignment:
        # In group order, whichever order the parameters were set in.
        params = trial.params
        return BitAssignment({group: params[group] for group in self._space.groups})

    def _measure(self, batch: Batch, evaluator: Evaluator, can_stop: bool = True) -> None:
        """Measure the batch's new assignments, each once.

        Raises:
            RunError: a value is missing.
        """
        numbers: dict[bytes, int] = {}
        assignments: dict[int, BitAssignment] = {}
        for trial, assignment in batch:
            key = self._key(assignment)
            if key not in self._measured and key not in numbers:
                numbers[key] = trial.number
                assignments[trial.number] = assignment
        if not numbers:
            return
        done = completed(self.trials)
        best = None
        # A front needs the values of all its trials, so nothing is stopped there.
        if can_stop and done and self._settings.front_kind is None:
            best = best_of(done, self._settings.maximize).assignment
        starts = {start.choices.tobytes() for start in self._schedule.starts.values()}
        protected = {number for key, number in numbers.items() if key in starts}
        results = evaluator(assignments, protected, best)
        missing = sorted(set(assignments) - set(results))
        if missing:
            raise RunError(f"the evaluator gave no value for the trials {missing}.")
        for key, number in numbers.items():
            self._measured[key] = results[number]

    def _tell(self, batch: Batch) -> None:
        """Tell the study the values of a batch, and whoever listens the trials so far."""
        with quiet_optuna():
            for trial, assignment in batch:
                self._add(self._tell_one(trial, assignment))
        if self._log.on_batch is not None:
            self._log.on_batch(tuple(self.trials))

    def _tell_one(self, trial: Trial, assignment: BitAssignment) -> SearchTrial:
        front = self._settings.front_kind
        source = str(trial.user_attrs.get("source", self._sampler_name))
        record = self._maker.make(trial.number, assignment, source, self._measured[self._key(assignment)])
        for name, excess in record.excess.items():
            trial.set_constraint(name, excess)
        for name, value in user_attributes(record).items():
            trial.set_user_attr(name, value)
        if front is None:
            # Optuna takes intermediate values of studies with one objective only.
            for num_samples, value in intermediate_values(record).items():
                trial.report(value, num_samples)
        values = objective_values(record, front) if record.is_complete else None
        frozen = self._study.tell(trial, values, state=optuna.trial.TrialState[record.state])
        return replace(record, system_attrs=sampler_attributes(frozen.system_attrs))

    @property
    def _sampler_name(self) -> str:
        sampler = self._settings.sampler
        return "thompson" if sampler == "auto" else sampler

    def _check_failures(self) -> None:
        failed = [trial for trial in self.trials if trial.has_failed]
        is_early = len(self.trials) < min(2 * self._settings.batch_size, self._schedule.num_trials)
        if len(failed) * 2 > len(self.trials) and not is_early:
            examples = ", ".join(f"{trial.number} ({trial.source})" for trial in failed[:5])
            raise RunError(
                f"{len(failed)} of {len(self.trials)} trials gave no finite value, among them {examples}. "
                "Check that the calibrated model gives finite outputs at the lowest widths, or allow only "
                "higher ones."
            )
