"""A run says of which weights its calibration data tell too little."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import raysearch
from tests.support.command_line import QUICK


class Branching(nn.Module):
    """A wide layer, and one that only other data would reach."""

    def __init__(self):
        super().__init__()
        self.wide, self.other = nn.Linear(80, 4), nn.Linear(80, 4)
        self.skips = False

    def forward(self, x):
        return self.wide(x) if self.skips else self.wide(x) + self.other(x)


def skipping_forward(model, batch):
    model.skips = True
    return model(batch[0])


@pytest.mark.filterwarnings("ignore:the loss does not depend on 'other.weight'")
def test_weights_with_too_few_rows_or_none_are_named(tmp_path):
    data = TensorDataset(torch.randn(40, 80))
    task = raysearch.Task(Branching().eval(), (torch.zeros(2, 80),), data, data, forward=skipping_forward)
    config = raysearch.load_config(
        assignments=[*QUICK, 'export.targets=["packed"]', 'placement.ignored_scopes=["re:.*add.*"]']
    )
    result = raysearch.run(task, "avg_bits<=4", tmp_path, config=config, run_id="run", workers=0)
    notes = [note for note in result.notes if note.startswith("Rounding")]
    few = "fewer calibration vectors than inputs, damping raised (40 for 80 inputs, from 0.01 to 0.02)"
    never = "no call of the calibration data reads it as a matrix, rounded to nearest"
    assert notes == [f"Rounding of wide.weight: {few}.", f"Rounding of other.weight: {never}."]
