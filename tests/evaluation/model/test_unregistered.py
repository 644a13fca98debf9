"""Weights in plain containers are told."""

import warnings

import pytest
from torch import nn

from raysearch.evaluation.model.unregistered import warn_of_unregistered


def test_layers_and_parameters_in_plain_containers_are_told():
    inner = nn.Sequential(nn.Linear(2, 2))
    inner.hidden = [nn.Linear(2, 2)]
    model = nn.ModuleDict({"inner": inner})
    model.scales = {"a": nn.Parameter(inner[0].weight.detach()[0])}
    with pytest.warns(UserWarning, match="'scales', a dict; 'inner.hidden', a list.*nn.ModuleList"):
        warn_of_unregistered(model)


def test_names_for_what_is_registered_are_not():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model.order = [model[0], model[0].weight, "text"]
    with warnings.catch_warnings(record=True) as told:
        warn_of_unregistered(model)
    assert told == []
