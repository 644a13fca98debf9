"""The best assignments of the search, each trained shortly: the best after training is deployed."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from raysearch.artifacts import RunStore, Storage, codecs
from raysearch.cluster.pool import Pool
from raysearch.determinism import seeded
from raysearch.errors import TrainingError
from raysearch.evaluation import training_batches
from raysearch.pipeline.fingerprints import hash_batches
from raysearch.pipeline.inputs import Inputs
from raysearch.pipeline.stages import adapted_norms, recipe_from
from raysearch.records import (
    Finalist,
    Finalists,
    RangeTable,
    SearchResult,
    SearchTrial,
    chosen_trial,
)
from raysearch.search.summary import completed, ranked
from raysearch.seeding import derive_seed
from raysearch.training import Start, train_finalists

NUM_BATCHES = 4
"""Batches of the training data that their digest is of."""


def best_trials(search: SearchResult, count: int) -> list[SearchTrial]:
    """The trials of the best assignments, the winner first; each assignment once, as it was measured first.

    Args:
        search: done.
        count: how many; fewer where no more assignments were measured on all samples.
    """
    distinct: dict[str, SearchTrial] = {}
    for trial in ranked(completed(search.trials), search.maximize):
        distinct.setdefault(trial.assignment.digest(), trial)
    return list(distinct.values())[:count]


def compare_finalists(
    inputs: Inputs, ranges: RangeTable, search: SearchResult, pool: Pool, storage: Storage
) -> Finalists:
    """The stage: short trainings of the best assignments from their rounded codes.

    Args:
        inputs: the run's; their `search` says how many and how long, their `training` how.
        ranges: calibrated ranges with the codes of the rounding table.
        search: done.
        pool: its workers hold the replica of `make_replica`.
        storage: of the checkpoints of those that are being trained.

    Raises:
        TrainingError: every one of the trainings failed.
    """
    settings = inputs.search
    trials = best_trials(search, settings.finalists_trained)
    length = inputs.config.training.shortened(settings.finalists_epochs, settings.finalists_steps)
    starts = {
        trial.number: Start(trial.assignment, adapted_norms(inputs, ranges, trial.assignment))
        for trial in trials
    }
    recipe = replace(recipe_from(inputs, ranges, trials[0].assignment, {}), settings=length)
    trained = train_finalists(recipe, starts, pool, storage)
    entries = tuple(
        Finalist(trial.number, trial.value, trained[trial.number].history, trained[trial.number].failure)
        for trial in trials
    )
    if all(entry.failure for entry in entries):
        raise TrainingError(f"none of {len(entries)} finalists could be trained: {entries[0].failure}")
    return Finalists(entries, recipe.monitor, length.epochs, length.steps, digest_of_training_data(inputs))


def digest_of_training_data(inputs: Inputs) -> str:
    """Number and hash of a few batches of the training data, in the order of a training.

    Of a data set they are drawn from all of it. Data that draw from a generator other than Python's, numpy's
    and torch's global ones have another digest each time.
    """
    seed = derive_seed(inputs.config.seed, "training-data")
    with seeded(seed):
        batches = training_batches(inputs.task.train, inputs.config.training.batch_size, seed, 0, 1)
        first = [batch for (batch,) in islice(batches(0), NUM_BATCHES)]
        return f"{batches.num_turns}:{hash_batches(first)}"


def load_chosen(store: RunStore) -> SearchTrial:
    """The trial whose assignment a run deploys."""
    finalists = store.load(codecs.FINALISTS) if store.has(codecs.FINALISTS) else None
    return chosen_trial(store.load(codecs.SEARCH), finalists)
