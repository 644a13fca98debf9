"""Weights that are computed from others become plain ones, and the user's model stays as it was."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from raysearch.evaluation.model.plain_weights import with_plain_weights


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).T


def custom(layer):
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


def pruned(layer):
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


def frozen(layer):
    return parametrizations.weight_norm(layer).requires_grad_(False)


def older_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return weight_norm(layer)


MAKERS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "custom": custom,
    "pruned": pruned,
    "frozen": frozen,
    "older weight_norm": older_weight_norm,
    "older spectral_norm": spectral_norm,
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_computed_weight_becomes_a_plain_parameter_of_a_copy(name):
    torch.manual_seed(0)
    model = nn.Sequential(MAKERS[name](nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(3, 4)
    expected, before = model(x), dict(model.state_dict())
    with pytest.warns(UserWarning, match=r"taken as plain ones.*0\.weight"):
        plain = with_plain_weights(model)
    assert {"0.weight", "0.bias", "2.weight", "2.bias"} == dict(plain.named_parameters()).keys()
    assert not dict(plain.named_buffers())
    assert torch.equal(plain(x), expected)
    assert plain[0].weight.requires_grad == (name != "frozen")
    copy.deepcopy(plain)
    # The user's model has its norm or mask as before.
    assert model.state_dict().keys() == before.keys()
    assert torch.equal(model(x), expected)


def test_a_plain_model_is_not_copied():
    model = nn.Linear(2, 2)
    assert with_plain_weights(model) is model
