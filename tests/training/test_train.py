"""QAT in this process: it learns, it is repeatable, and it goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from raysearch.artifacts import Storage
from raysearch.errors import ConfigError, DataError, StorageError, TaskError, TrainingError
from raysearch.evaluation.model.model_hash import hash_model
from raysearch.records import EpochMetrics
from raysearch.training import fine_tune, load_checkpoint
from raysearch.training.context import ProcessContext
from raysearch.training.progress import CheckpointFolder, Progress
from raysearch.training.state import state_bytes
from tests.support.training_recipes import Plain, Toy, blobs, cross_entropy, make_recipe, nan_loss, trained


def run(recipe, **options):
    saved = {}
    return fine_tune(recipe, saved.__setitem__, on_ray=False, **options), saved


def values(result, name):
    return [entry.metrics[name] for entry in result.history]


class Stopping(ProcessContext):
    """Stops after some steps, and goes on from what a checkpoint folder holds."""

    def __init__(self, folder, stop_after=None):
        super().__init__(folder=CheckpointFolder(Storage(folder)))
        self.stop_after = stop_after

    def tell(self, status):
        if status.step == self.stop_after and status.loss is not None:
            raise KeyboardInterrupt


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


@pytest.mark.slow
@pytest.mark.parametrize("step", [7, 9, 14])
def test_a_stopped_training_goes_on_bit_for_bit(tmp_path, step):
    """At an epoch's end and within one; the last checkpoint is a step or two before."""
    settings = {"epochs": 3, "checkpoint_steps": 4}
    expected = trained(make_recipe(**settings))
    with pytest.raises(KeyboardInterrupt):
        trained(make_recipe(**settings), Stopping(tmp_path, step))
    torch.manual_seed(1234)
    resumed = trained(make_recipe(**settings), Stopping(tmp_path))
    assert state_bytes(resumed.model) == state_bytes(expected.model)
    assert resumed.progress == expected.progress
    # Once more after the last epoch: nothing is left to do.
    assert trained(make_recipe(**settings), Stopping(tmp_path)).progress == expected.progress


class Unmeasured:
    """Six batches in the first epoch, and one more in each that follows, of which nobody is told before."""

    epochs = 0

    def __iter__(self):
        self.epochs += 1
        return iter([blobs(32, seed) for seed in range(5 + self.epochs)])


def test_data_without_a_length_goes_on_bit_for_bit_too(tmp_path):
    settings = {"epochs": 3, "checkpoint_steps": 4}
    expected = trained(make_recipe(**settings, train=Unmeasured()))
    with pytest.raises(KeyboardInterrupt):
        # In the third epoch, whose schedule knows the length of the second.
        trained(make_recipe(**settings, train=Unmeasured()), Stopping(tmp_path, 18))
    data = Unmeasured()
    data.epochs = 2
    resumed = trained(make_recipe(**settings, train=data), Stopping(tmp_path))
    assert state_bytes(resumed.model) == state_bytes(expected.model)


class Losing(ProcessContext):
    """Loses its checkpoints' folder after some steps: a file is in its place."""

    def __init__(self, folder, lose_after):
        super().__init__(folder=CheckpointFolder(Storage(folder)))
        self.path = folder
        self.lose_after = lose_after

    def tell(self, status):
        if status.step == self.lose_after and self.path.is_dir():
            self.path.rename(self.path.with_name("kept"))
            self.path.touch()


def test_a_storage_that_is_lost_ends_training_and_its_last_checkpoint_goes_on(tmp_path):
    settings = {"epochs": 3, "checkpoint_steps": 4}
    expected = trained(make_recipe(**settings))
    with pytest.raises(StorageError, match=r"cannot write .*/training/step-00000008"):
        trained(make_recipe(**settings), Losing(tmp_path / "training", 7))
    resumed = trained(make_recipe(**settings), Stopping(tmp_path / "kept"))
    assert state_bytes(resumed.model) == state_bytes(expected.model)


def test_a_training_goes_on_with_other_settings_and_says_so(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(make_recipe(), Stopping(tmp_path, 8))
    resumed = trained(make_recipe(learning_rate=1e-4), Stopping(tmp_path))
    remark = (
        "training went on from step 6 with other settings: training.learning_rate is 0.001 in the run and "
        "0.0001 now"
    )
    assert resumed.progress.remarks == [remark]
    assert [entry.epoch for entry in resumed.progress.history] == [-1, 0, 1, 2]
    result, _ = run(make_recipe(learning_rate=1e-4), storage=Storage(tmp_path))
    assert remark not in result.notes()


def test_another_division_of_the_same_steps_keeps_its_place(tmp_path):
    same = {"kind": Plain, "epochs": 2, "global_batch_size": 32, "checkpoint_steps": 4}
    with pytest.raises(KeyboardInterrupt):
        trained(make_recipe(batch_size=32, **same), Stopping(tmp_path, 5))
    resumed = trained(make_recipe(batch_size=16, **same), Stopping(tmp_path))
    assert resumed.progress.step == 12
    expected = trained(make_recipe(batch_size=32, **same))
    for one, other in zip(resumed.model.parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_other_steps_begin_the_epoch_anew(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(make_recipe(epochs=1, checkpoint_steps=4), Stopping(tmp_path, 5))
    resumed = trained(make_recipe(epochs=1, batch_size=64), Stopping(tmp_path))
    assert resumed.progress.step == 4 + 3


def flip(path, place):
    """One bit of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_checkpoint_folder_keeps_the_last_two_and_their_best_states(tmp_path):
    folder = CheckpointFolder(Storage(tmp_path))
    history = [EpochMetrics(-1, {"loss": 0.1 + 0.2, "x": math.inf}), EpochMetrics(0, {"loss": 1e-300})]
    for step, best in ((3, 0), (6, 6), (9, 6)):
        progress = Progress(1, 2, step, history, 0, best, f"best{best}".encode(), {"a": 1}, ["so"])
        folder.save(progress, {"x": torch.full((2,), float(step))})
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"step-00000006.safetensors", "step-00000009.safetensors", "best-00000006.safetensors"}
    latest, tensors = CheckpointFolder(Storage(tmp_path)).latest()
    assert (latest, tensors["x"].tolist()) == (progress, [9.0, 9.0])
    last = tmp_path / "step-00000009.safetensors"
    last.write_bytes(last.read_bytes()[:-3])
    latest, _ = CheckpointFolder(Storage(tmp_path)).latest()
    assert latest.step == 6
    # A number of the tensors, which no reader could tell from another.
    before = tmp_path / "step-00000006.safetensors"
    flip(before, -30)
    assert CheckpointFolder(Storage(tmp_path)).latest() is None
    flip(before, -30)
    flip(tmp_path / "best-00000006.safetensors", 0)
    assert CheckpointFolder(Storage(tmp_path)).latest() is None


def test_a_folder_without_a_checkpoint_has_none(tmp_path):
    assert CheckpointFolder(Storage(tmp_path / "none")).latest() is None
    assert CheckpointFolder(None).latest() is None


def test_weights_that_are_not_finite_are_never_a_checkpoint(tmp_path):
    recipe = make_recipe(epochs=2)
    seen = []

    def loss(outputs, batch):
        if outputs.requires_grad:
            seen.append(1)
        value = recipe.loss(outputs, batch)
        # Finite, with a gradient that is not, in the last step of the second epoch.
        return value + (outputs[0, 0] * 0).sqrt() if len(seen) == 12 and outputs.requires_grad else value

    text = r"is not finite after step 12, .* goes on from the checkpoint of step 6\.$"
    with pytest.raises(TrainingError, match=text):
        trained(dataclasses.replace(recipe, loss=loss), Stopping(tmp_path))
    latest, tensors = CheckpointFolder(Storage(tmp_path)).latest()
    assert latest.step == 6
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    resumed = trained(make_recipe(epochs=2, learning_rate=1e-4), Stopping(tmp_path))
    assert resumed.progress.next_epoch == 2


def test_a_checkpoint_whose_own_next_step_diverges_is_not_gone_on_from(tmp_path):
    def loss(outputs, batch):
        spoilt = outputs.requires_grad and outputs.abs().max() > 100
        return cross_entropy(outputs, batch) * (math.nan if spoilt else 1.0)

    recipe = make_recipe(epochs=1, loss=loss, checkpoint_steps=1)
    fast = dataclasses.replace(recipe, settings=recipe.settings.model_copy(update={"learning_rate": 100.0}))
    text = "begins the training anew; the checkpoint of step 1, whose next step this was, is deleted."
    with pytest.raises(TrainingError, match=text):
        trained(fast, Stopping(tmp_path))
    assert trained(recipe, Stopping(tmp_path)).progress.step == 6


def test_a_checkpoint_of_other_widths_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(make_recipe(bits=2, checkpoint_steps=2), Stopping(tmp_path, 3))
    with pytest.raises(StorageError, match=r"the checkpoint of step 2 in .* other bit-widths.* Delete that"):
        trained(make_recipe(bits=3), Stopping(tmp_path))


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


def test_workers_that_read_checkpoints_of_different_steps_are_refused():
    class Behind(ProcessContext):
        def gather(self, values):
            return [[4], values]

    with pytest.raises(TrainingError, match=r"different steps, 4, 0: .*every node"):
        trained(make_recipe(epochs=1), Behind())
