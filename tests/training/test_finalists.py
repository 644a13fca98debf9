"""Short trainings of several assignments: units that answer the same on any pool."""

from __future__ import annotations

import dataclasses
import math

import pytest

from raysearch.artifacts import Storage
from raysearch.cluster.pool import LocalPool
from raysearch.cluster.resuming import ResumingPool
from raysearch.evaluation import Replica
from raysearch.records import BitAssignment, EpochMetrics, Finalist, Finalists
from raysearch.training import Start, fine_tune, train_finalists
from tests.support.shuffled_pool import ShuffledPool
from tests.support.training_recipes import cross_entropy, make_recipe


class KeptUnits(dict):
    """A log in memory."""

    def read(self, stage):
        return dict(self)

    def append(self, stage, key, value):
        self[key] = value


def pool_of(recipe):
    return LocalPool(Replica(recipe.model, recipe.forward, {}, recipe.divergence))


def starts_at(recipe, **widths):
    return {int(name[1:]): Start(BitAssignment.uniform(recipe.setup, bits)) for name, bits in widths.items()}


def test_each_is_trained_as_alone_whatever_the_order_and_where_it_was_cut():
    recipe = make_recipe(epochs=1)
    starts = starts_at(recipe, t3=4, t8=3)
    trained = train_finalists(recipe, starts, pool_of(recipe))
    for number, start in starts.items():
        alone = fine_tune(
            dataclasses.replace(recipe, assignment=start.assignment), lambda *_: None, on_ray=False
        )
        assert trained[number].history == alone.history
    log, done = KeptUnits(), []
    pool = ShuffledPool(pool_of(recipe), seed=1)
    first = {3: starts[3]}
    resuming = ResumingPool(pool, log, "finalists", lambda *counts: done.append(counts))
    assert train_finalists(recipe, first, resuming) == {3: trained[3]}
    assert train_finalists(recipe, starts, resuming) == trained
    assert len(log) == 2
    # With other settings nothing of it is taken.
    other = make_recipe(epochs=1, learning_rate=1e-4)
    train_finalists(other, first, ResumingPool(pool, log, "finalists", lambda *counts: None))
    assert len(log) == 3


def test_one_that_diverges_is_given_up_and_the_others_go_on():
    steps = []

    def loss(outputs, batch):
        if outputs.requires_grad:
            steps.append(1)
        # In the first step of the first training alone.
        is_bad = outputs.requires_grad and len(steps) == 1
        return cross_entropy(outputs, batch) * (math.nan if is_bad else 1.0)

    recipe = make_recipe(epochs=1, loss=loss)
    failed, other = train_finalists(recipe, starts_at(recipe, t0=2, t1=3), pool_of(recipe)).values()
    assert failed.history == ()
    assert failed.failure.startswith("the training objective is nan at epoch 0, step 0")
    assert (len(other.history), other.failure) == (2, "")


def test_one_that_is_cut_goes_on_from_its_checkpoint_and_leaves_none(tmp_path):
    steps = []

    def loss(outputs, batch):
        if outputs.requires_grad:
            steps.append(len(steps))
            if len(steps) == 5:
                raise KeyboardInterrupt
        return cross_entropy(outputs, batch)

    storage = Storage(tmp_path)
    recipe = make_recipe(epochs=1, loss=loss, checkpoint_steps=2)
    starts = starts_at(recipe, t0=2)
    with pytest.raises(KeyboardInterrupt):
        train_finalists(recipe, starts, pool_of(recipe), storage)
    (folder,) = Storage(tmp_path / "finalists").folders()
    assert folder.startswith("0-")
    # How often a checkpoint is written says nothing of whether it fits.
    often = make_recipe(epochs=1, loss=loss, checkpoint_steps=1)
    resumed = train_finalists(often, starts, pool_of(often), storage)
    # Of six steps four were done, and the fifth was cut.
    assert len(steps) == 5 + 2
    assert storage.list() == ()
    assert resumed == train_finalists(recipe, starts, pool_of(recipe))


def finalist(number, *losses, failure=""):
    history = tuple(EpochMetrics(epoch - 1, {"loss": loss}) for epoch, loss in enumerate(losses))
    return Finalist(number, 0.1 * number, history, failure)


@pytest.mark.parametrize(
    ("entries", "order", "text"),
    [
        (
            [finalist(1, 0.5, 0.4), finalist(2, 0.6, 0.3), finalist(5, failure="nan")],
            [2, 1, 5],
            "trial 2 is the best (validation loss 0.3), before {first} (0.4): the order changed; lost: 5",
        ),
        (
            [finalist(1, 0.5, 0.2), finalist(2, 0.6, 0.9), finalist(3, math.nan, 0.6)],
            [1, 2, 3],
            "{first}, stayed the best (validation loss 0.2), and the order of the others did not change",
        ),
        (
            [finalist(1, 0.1, 0.2), finalist(2, math.nan), finalist(3, 0.6)],
            [1, 3, 2],
            "{first}, stayed the best (validation loss 0.1), and the order of the others changed",
        ),
    ],
)
def test_the_best_after_training_is_chosen(entries, order, text):
    record = Finalists(tuple(entries), "loss", 1, None, "4:abc")
    assert [entry.trial for entry in record.in_order()] == order
    assert record.chosen == order[0]
    assert record.has_new_order == (order != [entry.trial for entry in entries])
    text = text.format(first="the search's best, trial 1")
    assert record.describe() == f"Of 3 finalists, trained for 1 epoch each, {text}"
    assert [row["place"] for row in record.rows()] == [
        [entry.trial for entry in entries].index(number) + 1 for number in order
    ]
