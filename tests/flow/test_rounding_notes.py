"""A run says of which weights its calibration data tell too little."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import raysearch
from raysearch.artifacts import RunStore, codecs
from raysearch.cluster.pool import LocalPool
from raysearch.evaluation import DataSet
from raysearch.pipeline.inputs import check_inputs
from raysearch.pipeline.stages import load_ranges, make_replica
from raysearch.sensitivity.responses import measure_responses
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
    data, validation = TensorDataset(torch.randn(40, 80)), TensorDataset(torch.randn(56, 80))
    task = raysearch.Task(Branching().eval(), (torch.zeros(2, 80),), data, validation)
    config = raysearch.load_config(
        assignments=[*QUICK, 'export.targets=["packed"]', 'placement.ignored_scopes=["other.input"]']
    )
    result = raysearch.run(task, "avg_bits<=4", tmp_path, config=config, run_id="run", workers=0)
    notes = [note for note in result.notes if note.startswith("Rounding")]
    few = "fewer calibration vectors than inputs, damping raised"
    dead = "inputs that are always 0, what reads them is rounded to nearest (80 of 80)"
    assert notes == [
        f"Rounding of 2 weights (wide.weight, other.weight): {few}.",
        f"Rounding of other.weight: {dead}.",
    ]
    assert any(note.startswith("Responses are of 40 validation samples, since") for note in result.notes)
    # What fits the calibration samples is nearly free on them, so responses are of others.
    store = RunStore(str(tmp_path), "run")
    inputs = check_inputs(task, config, ["avg_bits<=4"])
    replica = replace(make_replica(inputs, search=[]), device="cpu")
    shards = replica.shards[DataSet.RESPONSES]
    measured = measure_responses(
        inputs.setup,
        load_ranges(store),
        LocalPool(replica),
        len(shards),
        config.sensitivity,
        data=DataSet.RESPONSES,
        seed=config.seed,
    )
    assert [len(batch[0]) for batch in shards] == [40]
    assert torch.equal(torch.cat([batch[0] for batch in shards]), validation.tensors[0][:40])
    assert np.array_equal(store.load(codecs.SENSITIVITY).gram, measured.gram)
