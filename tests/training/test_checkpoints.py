"""Checkpoints of training: what goes on from them, and to which bits."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from raysearch.artifacts import Storage
from raysearch.errors import StorageError, TrainingError
from raysearch.records import EpochMetrics
from raysearch.training import fine_tune
from raysearch.training.context import ProcessContext
from raysearch.training.progress import CheckpointFolder, Progress
from raysearch.training.state import state_bytes
from tests.support.training_recipes import Plain, blobs, cross_entropy, make_recipe, trained


class Stopping(ProcessContext):
    """Stops after some steps, and goes on from what a checkpoint folder holds."""

    def __init__(self, folder, stop_after=None):
        super().__init__(folder=CheckpointFolder(Storage(folder)))
        self.stop_after = stop_after

    def tell(self, status):
        if status.step == self.stop_after and status.loss is not None:
            raise KeyboardInterrupt


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
    recipe = make_recipe(learning_rate=1e-4)
    result = fine_tune(recipe, {}.__setitem__, on_ray=False, storage=Storage(tmp_path))
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


def test_a_checkpoint_that_two_workers_take_away_at_once_is_gone(tmp_path):
    CheckpointFolder(Storage(tmp_path)).save(Progress(step=3), {"x": torch.zeros(1)})

    class Slower(Storage):
        def delete_file(self, name):
            # The other worker of the group is done between this one's look and its hand.
            (tmp_path / name).unlink()
            super().delete_file(name)

    assert CheckpointFolder(Slower(tmp_path)).discard(3)
    assert CheckpointFolder(Storage(tmp_path)).last_step() is None


def test_workers_that_read_checkpoints_of_different_steps_are_refused():
    class Behind(ProcessContext):
        def gather(self, values):
            return [[4], values]

    with pytest.raises(TrainingError, match=r"different steps, 4, 0: .*every node"):
        trained(make_recipe(epochs=1), Behind())
