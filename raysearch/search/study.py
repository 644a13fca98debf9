"""The search: warm starts first, then ask/tell in fixed batches, every trial within the budgets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import optuna
from optuna.trial import Trial, TrialState

from raysearch.errors import ConfigError, RunError, StorageError
from raysearch.records import (
    BitAssignment,
    Budget,
    CostModel,
    QuantizerSetup,
    SearchResult,
    SearchTrial,
    SensitivityTable,
    check_achievable,
    excesses,
)
from raysearch.search.decoder import SMALL_SPACE, Decoder
from raysearch.search.optuna_forms import freeze_trial, quiet_optuna
from raysearch.search.outcome import summarise
from raysearch.search.sampler import SAMPLERS, make_distributions, make_sampler
from raysearch.search.space import OptionSpace, make_limits
from raysearch.search.surrogates import Surrogate, make_surrogate
from raysearch.search.warm_starts import WarmStart, distinct, warm_starts

Evaluate = Callable[[Mapping[int, BitAssignment]], Mapping[int, float]]
"""Measures a batch: trial number → assignment in, trial number → divergence out (NaN: it failed)."""

OnBatch = Callable[[tuple[SearchTrial, ...]], None]
"""Told all trials so far after each batch, so that they can be saved."""

PATIENCE = 32
"""Trials without a new assignment after which the search ends."""


def search_assignment(
    table: SensitivityTable,
    setup: QuantizerSetup,
    budgets: Sequence[Budget],
    evaluate: Evaluate,
    *,
    num_trials: int = 64,
    batch_size: int = 8,
    surrogate: str = "response",
    sampler: str = "auto",
    seed: int = 0,
    previous: Sequence[SearchTrial] = (),
    on_batch: OnBatch | None = None,
    enqueue: Sequence[BitAssignment] = (),
) -> SearchResult:
    """Find the assignment of least measured divergence within all budgets.

    The trials depend on the arguments alone, not on when or in which order values arrive; `batch_size` is
    one of the arguments. An assignment is measured once: a repeated proposal is answered from what is
    known. Every trial keeps every budget. The uniform widths that fit are always measured, so the result
    is never worse than they are.

    Args:
        table: what every option does alone and in pairs.
        setup: groups and their widths.
        budgets: limits that must all hold.
        evaluate: measures one batch of new assignments.
        num_trials: trials in all, warm starts included; the required warm starts are run in any case.
        batch_size: trials asked for before their values are told.
        surrogate: one of `SURROGATES`.
        sampler: one of `SAMPLERS`.
        seed: the run's seed.
        previous: trials of an interrupted run with the same other arguments. Its complete batches are
            replayed, the values of an incomplete one are used when it is asked for again, and the search
            goes on bit for bit as it would have.
        on_batch: called after each batch.
        enqueue: assignments to measure besides the warm starts.

    Returns:
        The best trial, all trials, the Pareto front, and what the winner is compared with.

    Raises:
        ConfigError: a name or a number is not allowed.
        BudgetError: no assignment meets the budgets, or an enqueued one exceeds them.
        StorageError: `previous` is of another search, or the table of another setup.
        RunError: more than half of the trials failed, or a value is missing.
    """
    if num_trials < 1 or batch_size < 1:
        raise ConfigError(f"num_trials ({num_trials}) and batch_size ({batch_size}) must be at least 1.")
    if sampler not in SAMPLERS:
        raise ConfigError(f"the sampler '{sampler}' is unknown; known: {', '.join(SAMPLERS)}.")
    model = CostModel(setup)
    check_achievable(budgets, model)
    space = OptionSpace(setup)
    decoder = Decoder(space, make_limits(space, budgets, model))
    scores = make_surrogate(surrogate, table, space)
    named = warm_starts(table, scores, decoder, enqueue)
    search = _Search(decoder, scores, model, budgets, sampler, seed)
    search.begin(distinct(named), num_trials, previous, batch_size)
    search.loop(evaluate, batch_size, on_batch)
    values = {start.source: search.known.get(start.choices.tobytes(), math.nan) for start in named}
    return summarise(search.trials, decoder.lower_bound(scores.option_costs), values)


class _Search:
    """One study and what has been measured.

    Attributes:
        trials: the told trials, in number order.
        known: choices, as bytes → measured value, NaN for a failure.
    """

    def __init__(
        self,
        decoder: Decoder,
        surrogate: Surrogate,
        model: CostModel,
        budgets: Sequence[Budget],
        sampler: str,
        seed: int,
    ) -> None:
        self.decoder, self.surrogate, self.model, self.budgets = decoder, surrogate, model, budgets
        self.sampler, self.seed = sampler, seed
        self.space = decoder.space
        self.trials: list[SearchTrial] = []
        self.known: dict[bytes, float] = {}
        self.total = 0
        self.distributions = make_distributions(self.space)
        feasible = decoder.feasible(SMALL_SPACE)
        self.num_feasible = math.inf if feasible is None else len(feasible)
        with quiet_optuna():
            self.study = optuna.create_study(direction="minimize")

    def begin(
        self, starts: list[WarmStart], num_trials: int, previous: Sequence[SearchTrial], batch_size: int
    ) -> None:
        """Replay complete batches, remember the values of the rest, and enqueue the open warm starts."""
        self.total = max(num_trials, sum(start.required for start in starts))
        starts = starts[: self.total]
        previous = sorted(previous, key=lambda trial: trial.number)
        if [trial.number for trial in previous] != list(range(len(previous))):
            raise StorageError("the saved trials are not numbered 0, 1, 2, …; start the search anew.")
        complete = len(previous) // batch_size * batch_size
        for trial in previous:
            choices = self.space.choices(trial.assignment)
            other_start = trial.number < len(starts) and choices.tolist() != (
                starts[trial.number].choices.tolist()
            )
            if other_start or not self.decoder.is_feasible(choices):
                raise StorageError(
                    f"the saved trial {trial.number} belongs to another search (other budgets, sensitivity "
                    "or warm starts); start the search anew."
                )
            self.known.setdefault(choices.tobytes(), trial.value)
        with quiet_optuna():
            for trial in previous[:complete]:
                self.study.add_trial(freeze_trial(trial, self.distributions))
            for start in starts[complete:]:
                bits = dict(self.space.assignment(start.choices).bits)
                self.study.enqueue_trial(bits, user_attrs={"source": start.source})
        self.trials = list(previous[:complete])

    def loop(self, evaluate: Evaluate, batch_size: int, on_batch: OnBatch | None) -> None:
        """Ask, measure and tell batches until the trials or the assignments are used up."""
        while not self._is_over(batch_size):
            batch = self._ask(min(batch_size, self.total - len(self.trials)))
            self._measure(batch, evaluate)
            self._tell(batch)
            if on_batch is not None:
                on_batch(tuple(self.trials))
            self._check_failures(batch_size)

    def _is_over(self, batch_size: int) -> bool:
        if len(self.trials) >= self.total:
            return True
        keys = [trial.assignment.digest() for trial in self.trials]
        if len(set(keys)) >= self.num_feasible:
            return True
        recent = max(PATIENCE, 2 * batch_size)
        return len(keys) > recent and set(keys[-recent:]) <= set(keys[:-recent])

    def _ask(self, count: int) -> list[tuple[Trial, BitAssignment]]:
        with quiet_optuna():
            self.study.sampler = make_sampler(
                self.sampler, self.surrogate, self.decoder, self.seed, len(self.trials)
            )
            batch = [self.study.ask(self.distributions) for _ in range(count)]
        # In group order, whichever order the parameters were set in.
        asked = [(trial, trial.params) for trial in batch]
        return [(t, BitAssignment({g: int(params[g]) for g in self.space.groups})) for t, params in asked]

    def _measure(self, batch: list[tuple[Trial, BitAssignment]], evaluate: Evaluate) -> None:
        new: dict[bytes, int] = {}
        for trial, assignment in batch:
            key = self.space.choices(assignment).tobytes()
            if key not in self.known:
                new.setdefault(key, trial.number)
        if not new:
            return
        by_number = {trial.number: assignment for trial, assignment in batch}
        values = evaluate({number: by_number[number] for number in new.values()})
        if missing := sorted(set(new.values()) - set(values)):
            raise RunError(f"the evaluator gave no value for the trials {missing}.")
        self.known.update({key: float(values[number]) for key, number in new.items()})

    def _tell(self, batch: list[tuple[Trial, BitAssignment]]) -> None:
        with quiet_optuna():
            for trial, assignment in batch:
                record = self._record(trial, assignment)
                for name, excess in record.excess.items():
                    trial.set_constraint(name, excess)
                trial.set_user_attr("costs", dict(record.costs))
                trial.set_user_attr("predicted", record.predicted)
                trial.set_user_attr("source", record.source)
                if record.state == "COMPLETE":
                    self.study.tell(trial, record.value)
                else:
                    self.study.tell(trial, state=TrialState.FAIL)
                self.trials.append(record)

    def _record(self, trial: Trial, assignment: BitAssignment) -> SearchTrial:
        choices = self.space.choices(assignment)
        costs = self.model.costs(assignment)
        value = self.known[choices.tobytes()]
        name = "thompson" if self.sampler == "auto" else self.sampler
        return SearchTrial(
            number=trial.number,
            assignment=assignment,
            costs=costs,
            excess=excesses(self.budgets, self.model, costs),
            value=value if math.isfinite(value) else math.nan,
            predicted=float(self.surrogate.predict(choices)),
            source=str(trial.user_attrs.get("source", name)),
            state="COMPLETE" if math.isfinite(value) else "FAIL",
        )

    def _check_failures(self, batch_size: int) -> None:
        failed = [trial for trial in self.trials if trial.state == "FAIL"]
        early = len(self.trials) < min(2 * batch_size, self.total)
        if len(failed) * 2 > len(self.trials) and not early:
            seen = ", ".join(f"{trial.number} ({trial.source})" for trial in failed[:5])
            raise RunError(
                f"{len(failed)} of {len(self.trials)} trials gave no finite divergence, among them {seen}. "
                "Check that the calibrated model gives finite outputs at the lowest widths, or allow only "
                "higher ones."
            )
