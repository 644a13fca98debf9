"""A model's state as bytes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raysearch.errors import StorageError
from raysearch.training import load_checkpoint
from raysearch.training.state import load_state, state_bytes
from tests.support.training_recipes import Chatty, make_recipe


def scrambled(recipe):
    """Another controller of the same build, with every tensor changed."""
    controller = recipe.build()
    with torch.no_grad():
        for parameter in controller.model.parameters():
            parameter.add_(1)
        for buffer in controller.model.buffers():
            buffer.add_(1)
    for quantizer in controller.all_quantizations.values():
        quantizer.num_bits, quantizer.zero_point = 5, 3
    return controller


def test_a_round_trip_restores_every_tensor_and_the_extra_state():
    recipe = make_recipe()
    original, copy = recipe.build(), scrambled(recipe)
    data = state_bytes(original.model)
    load_checkpoint(copy, data)
    for (name, expected), (again, found) in zip(
        original.model.state_dict().items(), copy.model.state_dict().items(), strict=True
    ):
        assert name == again
        assert torch.equal(found, expected), name
    for name, quantizer in copy.all_quantizations.items():
        expected = original.all_quantizations[name]
        assert (quantizer.num_bits, quantizer.zero_point) == (expected.num_bits, expected.zero_point)
    assert state_bytes(copy.model) == data


def test_tied_weights_are_stored_once_and_stay_tied():
    recipe = make_recipe()
    controller = scrambled(recipe)
    data = state_bytes(recipe.build().model)
    load_state(controller.model, data)
    first = controller.model.first.parametrizations.weight.original
    assert controller.model.second.parametrizations.weight.original is first
    assert data.count(b"parametrizations.weight.original") == 2  # the tied one and the head's
    untied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    untied[1].weight = nn.Parameter(untied[0].weight.detach().clone())
    assert len(state_bytes(untied)) > 2 * 4 * 16


def test_views_of_one_buffer_are_all_restored():
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("whole", torch.arange(6.0))
            self.register_buffer("part", self.whole[:3])
            self.register_buffer("nothing", torch.empty(0))
            self.register_buffer("nothing_else", torch.empty(0))
            self.register_buffer("scalar", torch.tensor(3))

    source, target = Views(), Views()
    target.whole.zero_()
    target.scalar.zero_()
    load_state(target, state_bytes(source))
    assert target.whole.tolist() == source.whole.tolist()
    assert target.part.tolist() == [0, 1, 2]
    assert int(target.scalar) == 3


def test_extra_state_that_is_no_tensor_is_left_to_the_model():
    recipe = make_recipe(kind=Chatty)
    controller = scrambled(recipe)
    load_state(controller.model, state_bytes(recipe.build().model))
    assert controller.model.get_extra_state() == {"note": "kept by the float model"}


def test_damaged_bytes_are_refused():
    recipe = make_recipe()
    controller = recipe.build()
    data = state_bytes(controller.model)
    for broken in (b"", b"nonsense", data[:-5], data[:40]):
        with pytest.raises(StorageError, match="the checkpoint is damaged"):
            load_state(controller.model, broken)


def test_a_state_of_another_model_is_refused_by_name():
    small, large = nn.Linear(2, 2), nn.Linear(2, 3)
    with pytest.raises(StorageError, match=r"another shape \['bias', 'weight'\]"):
        load_state(large, state_bytes(small))
    with pytest.raises(StorageError, match=r"unknown \['bias'\]"):
        load_state(nn.Linear(2, 2, bias=False), state_bytes(small))
    with pytest.raises(StorageError, match=r"missing \['bias'\]"):
        load_state(small, state_bytes(nn.Linear(2, 2, bias=False)))
