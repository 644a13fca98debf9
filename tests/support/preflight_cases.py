"""A small task, and what the preflight says of it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from raysearch import Task
from raysearch.config import load_config
from raysearch.errors import BadInputError
from raysearch.pipeline.inputs import check_inputs
from raysearch.pipeline.preflight import preflight

X = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class Net(nn.Module):
    def __init__(self, norm=False):
        super().__init__()
        self.a = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6) if norm else nn.Identity()
        self.b = nn.Linear(6, 3)

    def forward(self, x):
        return self.b(F.relu(self.norm(self.a(x))))


def cross_entropy(outputs, batch):
    return F.cross_entropy(outputs, batch[1])


def make_task(**fields):
    data = TensorDataset(X, Y)
    base = {"calibration": data, "validation": data, "train": data, "loss": cross_entropy}
    torch.manual_seed(0)
    return Task(fields.pop("model", None) or Net(), (X[:2],), **{**base, **fields})


def try_task(task, workers=0, **settings):
    """Check a task as a run does before it computes; returns the steps that were told."""
    settings.setdefault("export", {"targets": ["packed"]})
    config = load_config(
        overrides={"cluster": {"workers": workers}, "validation": {"shard_size": 4}, **settings}
    )
    steps = []
    graphs = preflight(
        check_inputs(task, config, ["avg_bits<=4"]), lambda done, total: steps.append((done, total))
    )
    assert all(graphs.values())
    return steps


def refuse(task, **settings):
    with pytest.raises(BadInputError) as caught:
        try_task(task, **settings)
    return str(caught.value)
