"""The exact traces of the benchmark's language model against all columns of Λ."""

import numpy as np
import pytest
import torch

from benchmarks.problems import vocabulary_model
from raysearch.evaluation import Divergence, Replica, default_forward
from raysearch.sensitivity.estimators.gauss_newton import ExactGaussNewton
from tests.support.trace_draws import draw


@pytest.mark.parametrize("tied", [False, True])
def test_traces_in_the_space_of_hidden_states_are_exact(tied, monkeypatch):
    for name, value in {"WORDS": 11, "TOKENS": 3, "WIDTH": 8}.items():
        monkeypatch.setattr(vocabulary_model, name, value)
    torch.manual_seed(0)
    model = vocabulary_model.Language(tied).eval()
    shard = (torch.randint(0, 11, (2, 3)), torch.randint(0, 11, (2, 3)))
    replica = Replica(model, default_forward, {"calibration": [shard]}, Divergence("kl"))
    names = tuple(name for name, p in model.named_parameters() if p.ndim > 1)
    truth = draw(ExactGaussNewton(), replica, names)
    found = vocabulary_model.language_traces(replica, names)
    assert found == pytest.approx(np.array([truth[name].mean() for name in names]), rel=1e-4)
