"""Copies that read the weights where they are."""

import copy

import torch
from torch import nn

from raysearch.evaluation.model.copies import reading_copy


def test_a_reading_copy_shares_the_memory_of_weights_and_nothing_else():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    twin = reading_copy(model)
    assert twin[2].weight is twin[0].weight
    for one, other in zip(twin.parameters(), model.parameters(), strict=True):
        assert one is not other
        assert one.data_ptr() == other.data_ptr()
    twin.requires_grad_(False)
    twin[1].running_mean += 1
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model[1].running_mean.any()


def test_weights_that_a_forward_writes_into_are_copied():
    model = nn.Embedding(2, 2, max_norm=0.1)
    before = copy.deepcopy(model.weight)
    reading_copy(model)(torch.tensor([0, 1]))
    assert torch.equal(model.weight, before)
