"""A run says of which weights its calibration data tell too little."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import raysearch
from tests.support.command_line import QUICK


class Branching(nn.Module):
    """A wide layer, and one that no row of any batch reaches."""

    def __init__(self):
        super().__init__()
        self.wide, self.other = nn.Linear(80, 4), nn.Linear(80, 4)

    def forward(self, x):
        return self.wide(x) + self.other(x[:0]).sum(0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the loss does not depend on 'other.weight'")
def test_weights_with_too_few_rows_or_none_are_named(tmp_path):
    data = TensorDataset(torch.randn(40, 80))
    task = raysearch.Task(Branching().eval(), (torch.zeros(2, 80),), data, data)
    config = raysearch.load_config(
        assignments=[*QUICK, 'export.targets=["packed"]', 'placement.ignored_scopes=["other.input"]']
    )
    result = raysearch.run(task, "avg_bits<=4", tmp_path, config=config, run_id="run", workers=0)
    notes = [note for note in result.notes if note.startswith("Rounding")]
    few = (
        "fewer calibration vectors than inputs, damping raised; on the same samples it looks better than it "
        "is, see sensitivity.response_samples"
    )
    dead = "inputs that are always 0, what reads them is rounded to nearest (80 of 80)"
    assert notes == [
        f"Rounding of 2 weights (wide.weight, other.weight): {few}.",
        f"Rounding of other.weight: {dead}.",
    ]
