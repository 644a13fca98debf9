"""QAT in this process: it learns, it is repeatable, and it goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from raysearch.artifacts import Storage
from raysearch.errors import ConfigError, DataError, TaskError, TrainingError
from raysearch.evaluation.model.model_hash import hash_model
from raysearch.training import fine_tune, load_checkpoint
from tests.support.training_recipes import Toy, blobs, make_recipe, nan_loss


def run(recipe, **options):
    saved = {}
    return fine_tune(recipe, saved.__setitem__, on_ray=False, **options), saved


def values(result, name):
    return [entry.metrics[name] for entry in result.history]


def test_a_two_bit_model_learns_and_the_best_state_is_kept():
    recipe = make_recipe(bits=2, epochs=6, learning_rate=3e-3)
    told = []
    result, saved = run(recipe, tell=told.append)
    losses = values(result, "loss")
    assert [entry.epoch for entry in result.history] == list(range(-1, 6))
    # Each step, and each validation.
    assert len(told) == 1 + 6 * (6 + 1)
    assert [status.step for status in told[:8]] == [0, 1, 2, 3, 4, 5, 6, 6]
    assert (told[9].epoch, told[9].epochs, told[9].steps, told[9].samples) == (1, 6, 36, 32)
    assert told[-1].validation == result.history[-1].metrics
    assert min(losses) < 0.7 * losses[0]
    assert result.monitor == "loss"
    assert losses[result.best_epoch + 1] == min(losses)
    assert result.skipped == ""
    # The saved state is that epoch's, and runs as it was measured.
    controller = recipe.build()
    load_checkpoint(controller, saved[result.checkpoint])
    batch = recipe.validation[0]
    with torch.no_grad():
        outputs = controller.model.eval()(batch[0])
    assert float(recipe.loss(outputs, batch)) == min(losses)


def test_the_calibrated_model_is_kept_when_training_harms():
    recipe = make_recipe(bits=8, learning_rate=30.0, epochs=2)
    result, saved = run(recipe)
    assert result.best_epoch == -1
    assert min(values(result, "loss")[1:]) >= values(result, "loss")[0]
    controller = recipe.build()
    state = {k: v.clone() for k, v in controller.model.state_dict().items()}
    load_checkpoint(controller, saved[result.checkpoint])
    assert all(torch.equal(v, state[k]) for k, v in controller.model.state_dict().items())


def test_a_nan_before_training_does_not_stop_an_epoch_from_being_best():
    recipe = make_recipe(epochs=2)
    calls = []

    def loss(outputs, batch):
        if outputs.requires_grad:
            return recipe.loss(outputs, batch)
        calls.append(1)
        return recipe.loss(outputs, batch) * (math.nan if len(calls) == 1 else 1.0)

    result, _ = run(dataclasses.replace(recipe, loss=loss))
    assert math.isnan(values(result, "loss")[0])
    assert result.best_epoch == 1


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    recipe = make_recipe()
    first, saved = run(recipe)
    torch.rand(5)
    # The same recipe object: training must not have changed it.
    again, saved_again = run(recipe)
    assert saved == saved_again
    assert first == again
    _, other = run(make_recipe(seed=8))
    assert saved != other


def test_without_labels_the_divergence_is_trained():
    unlabelled = [batch[0] for batch in [blobs(32, seed) for seed in range(6)]]
    recipe = make_recipe(
        loss=None, metrics={}, train=unlabelled, validation=[blobs(128, 2)[0]], epochs=6, learning_rate=3e-3
    )
    result, _ = run(recipe)
    assert result.monitor == "divergence"
    assert min(values(result, "divergence")) < 0.5 * values(result, "divergence")[0]
    assert "loss" not in result.history[0].metrics


def test_distill_can_be_chosen_beside_a_loss():
    result, _ = run(make_recipe(objective="distill", learning_rate=3e-3, epochs=6))
    assert result.monitor == "divergence"
    assert min(values(result, "divergence")) < values(result, "divergence")[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train": None}, "no training data"),
        ({"train": None, "loss": None, "objective": "loss"}, "no training data"),
        ({"epochs": 0}, "training.epochs is 0"),
    ],
)
def test_skipped_training_saves_the_calibrated_model_and_says_why(changes, reason):
    recipe = make_recipe(**changes)
    result, saved = run(recipe)
    assert reason in result.skipped
    assert (result.best_epoch, result.history) == (-1, ())
    load_checkpoint(recipe.build(), saved[result.checkpoint])


def test_a_loss_objective_without_a_loss_is_refused():
    with pytest.raises(ConfigError, match="the Task has no loss"):
        run(make_recipe(objective="loss", loss=None))


def test_a_nan_objective_is_named_by_epoch_and_step():
    with pytest.raises(TrainingError, match=r"objective is nan at epoch 0, step 0, .* Train with a lower"):
        run(make_recipe(loss=nan_loss))
    calls = []

    def late(outputs, batch):
        calls.append(outputs.requires_grad)
        bad = sum(calls) == 6 + 3 and outputs.requires_grad
        return recipe.loss(outputs, batch) * (math.inf if bad else 1.0)

    recipe = make_recipe()
    with pytest.raises(TrainingError, match="objective is inf at epoch 1, step 2"):
        run(dataclasses.replace(recipe, loss=late))


def test_a_training_sample_that_is_not_finite_is_named():
    x, y = blobs(96, 1)
    x[70] = math.nan
    train = [(x[:64], y[:64]), (x[64:], y[64:])]
    with pytest.raises(DataError, match=r"training data, epoch 0, step 1, sample 6: batch\[0\] holds NaN"):
        run(make_recipe(train=train))


class Remembering(Toy):
    """Keeps what it made of its last batch in buffers, one of which it makes in training only."""

    def __init__(self):
        super().__init__()
        self.register_buffer("last", torch.zeros(2, 12))

    def forward(self, x):
        self.last = x.detach()
        if self.training:
            self.register_buffer("mean", x.mean(0))
        return super().forward(x)


def test_buffers_that_follow_the_batch_are_no_state():
    recipe = make_recipe(kind=Remembering)
    result, saved = run(recipe)
    assert len(result.history) == 4
    controller = recipe.build()
    load_checkpoint(controller, saved[result.checkpoint])
    assert controller.model.last.shape == (2, 12)
    assert not hasattr(controller.model, "mean")


def test_a_loss_that_is_no_scalar_is_refused():
    recipe = make_recipe()
    by_sample = dataclasses.replace(
        recipe, loss=lambda z, batch: z.sum(1) if z.requires_grad else recipe.loss(z, batch)
    )
    with pytest.raises(TaskError, match=r"loss has shape \(32,\)"):
        run(by_sample)


def test_no_batch_is_an_error():
    with pytest.raises(TrainingError, match="no batch"):
        run(make_recipe(train=[]))


@pytest.mark.parametrize("failing", [False, True])
def test_the_float_model_and_the_rng_are_left_as_found(failing):
    recipe = make_recipe(**({"loss": nan_loss} if failing else {}))
    recipe.model.head.bias.requires_grad_(False)
    recipe.model.norm.train()

    def look():
        model = recipe.model
        return (
            hash_model(model),
            [module.training for module in model.modules()],
            [(p.requires_grad, p.grad) for p in model.parameters()],
            [type(module) for module in model.modules()],
        )

    before, rng = look(), torch.get_rng_state()
    if failing:
        with pytest.raises(TrainingError):
            run(recipe)
    else:
        run(recipe)
    assert look() == before
    assert torch.equal(torch.get_rng_state(), rng)


def test_training_stops_when_its_patience_is_over(tmp_path):
    recipe = make_recipe(bits=8, learning_rate=30.0, epochs=9, patience=2)
    result, _ = run(recipe, storage=Storage(tmp_path))
    assert [entry.epoch for entry in result.history] == [-1, 0, 1]
    assert "training stopped after 2 epochs, the last 2 without a better" in result.notes()[0]
