"""Anything a result depends on changes a fingerprint; what it does not depend on leaves it."""

import torch
from torch import nn

from raysearch.evaluation.model.model_hash import hash_model
from raysearch.pipeline.fingerprints import hash_batches, versions


def test_a_models_hash_sees_values_names_and_buffers():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = hash_model(model)
    assert hash_model(model.eval()) == before, "a mode is no input of a run: every stage sets its own"
    model[1].running_mean[0] = 1e-7
    assert hash_model(model) != before
    with torch.no_grad():
        model[1].running_mean[0] = 0
    assert hash_model(model) == before
    model[0].weight.data[0, 0] += 1
    assert hash_model(model) != before


def test_a_samples_hash_sees_types_and_the_cut_into_shards():
    data = torch.arange(8.0)
    whole = hash_batches([data])
    assert hash_batches([data.clone()]) == whole
    assert hash_batches([data[:4], data[4:]]) != whole
    assert hash_batches([data.view(torch.int32)]) != whole
    assert hash_batches([data.reshape(2, 4)]) != whole
    assert hash_batches([{"a": data}]) != hash_batches([{"b": data}])
    assert hash_batches([torch.zeros(0)]) != hash_batches([])


def test_versions_are_of_python_and_of_what_computes():
    assert {"python", "raysearch", "torch", "numpy"} <= set(versions())
