"""The form of call that suits all data, found without running the model."""

import pytest
import torch
from torch import nn

from raysearch.errors import TaskError
from raysearch.evaluation import default_forward
from raysearch.evaluation.calls.model_calls import find_call_form, record_calls


class Encoder(nn.Module):
    def forward(self, ids, mask=None, flag=False, **more):
        raise AssertionError("the model is not run")


def ids(batch, length):
    return torch.zeros(batch, length, dtype=torch.long)


def form(example, batches, forward=default_forward, model=None):
    model = model or Encoder()
    return find_call_form(model, example, record_calls(model, forward, batches))


def batch(batch, length, **more):
    return {"ids": ids(batch, length), "mask": ids(batch, length), **more}


def test_sizes_that_differ_are_open_and_equal_ones_share_a_symbol():
    example = (ids(2, 5), ids(2, 5))
    found = form(example, [batch(4, 5), batch(4, 7), batch(3, 5)])
    assert found.open_dims == {0: {1: "size1"}, 1: {1: "size1"}}
    assert found.example_inputs == example
    assert form(example, [batch(4, 5), batch(3, 5)]).open_dims == {}


def test_an_example_of_one_step_gives_way_to_a_longer_one():
    found = form((ids(2, 1), ids(2, 1)), [batch(4, 1), batch(4, 7)])
    assert found.example_inputs[0].shape == (4, 7)


def test_a_batch_that_is_not_in_dimension_0_is_open():
    def forward(model, data):
        return model(data.T)

    found = form((ids(6, 4),), [ids(4, 6), ids(3, 6)], forward)
    assert found.open_dims == {0: {1: "size1"}}


def test_constants_that_every_call_gives_are_exported_as_used():
    def forward(model, data):
        return model(ids=data, mask=None, flag=True, extra=None)

    found = form((ids(4, 6),), [ids(4, 6)], forward)
    assert found.example_inputs[1:] == (None, True)


@pytest.mark.parametrize(
    ("example", "batches", "said"),
    [
        ((ids(2, 5), ids(2, 5)), [batch(4, 5), {"ids": ids(4, 5)}], "'mask'.*by some batches and not by"),
        ((ids(2, 5),), [batch(4, 5)], "with 'mask', which the example inputs lack.*ids, mask"),
        ((ids(2, 5), ids(2, 5)), [{"ids": ids(4, 5)}], "give 'mask'.*no batch does"),
    ],
)
def test_optional_arguments_are_given_always_or_never(example, batches, said):
    with pytest.raises(TaskError, match=said):
        form(example, batches)


def test_nothing_is_told_of_a_forward_that_calls_a_part_of_the_model():
    model = nn.Sequential(nn.Identity())
    assert record_calls(model, lambda model, data: model[0](data), [ids(2, 3)]) == []
    assert not model._forward_pre_hooks


class Scaled(nn.Module):
    def forward(self, x, power=3):
        raise AssertionError("the model is not run")


class Summed(nn.Module):
    def forward(self, *tensors):
        raise AssertionError("the model is not run")


def test_a_default_that_is_given_every_time_keeps_its_place():
    data = [torch.zeros(4, 2), torch.zeros(3, 2)]
    by_place = form((torch.zeros(2, 2), 3), data, lambda model, batch: model(batch, 3), Scaled())
    assert by_place.example_inputs[1:] == (3,)
    assert len(form((torch.zeros(2, 2), 3), data, default_forward, Scaled()).example_inputs) == 1


def test_arguments_that_have_no_names_stay_as_the_example_has_them():
    example = (torch.zeros(2, 2), torch.zeros(2, 2))
    call = form(example, [torch.zeros(4, 2)], lambda model, batch: model(batch, batch), Summed())
    assert call.example_inputs is example
