"""The moving average of parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raysearch.artifacts import Storage
from raysearch.training.average import Average
from raysearch.training.context import ProcessContext
from raysearch.training.progress import CheckpointFolder
from tests.support.training_recipes import make_recipe, trained


def test_it_follows_the_parameters_and_takes_their_place_for_a_while():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
        average = Average(model, 0.5)
        # The decay of the first steps is lower: 2/11.
        model.weight.fill_(11.0)
        average.update(1)
        assert float(average.tensors()["weight"]) == pytest.approx(9.0)
        average.update(20)
        assert float(average.tensors()["weight"]) == pytest.approx(10.0)
        with average.in_force():
            assert float(model.weight) == pytest.approx(10.0)
        assert float(model.weight) == 11.0


def test_it_is_validated_and_goes_on_from_a_checkpoint(tmp_path):
    settings = {"ema_decay": 0.9, "epochs": 2}
    expected = trained(make_recipe(**settings)).progress
    assert expected.history[1:] != trained(make_recipe(epochs=2)).progress.history[1:]

    class Stopping(ProcessContext):
        def tell(self, status):
            if status.step == 8:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(make_recipe(**settings), Stopping(folder=CheckpointFolder(Storage(tmp_path))))
    resumed = trained(make_recipe(**settings), ProcessContext(folder=CheckpointFolder(Storage(tmp_path))))
    assert resumed.progress == expected
