"""Arguments in order, and a forward that an exporter takes."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from raysearch import Task
from raysearch.errors import TaskError
from raysearch.evaluation.calls.call_form import argument_names, exportable, in_order


@dataclass
class Result:
    logits: torch.Tensor
    extra: torch.Tensor | None = None


class Named(nn.Module):
    def forward(self, x, scale=None, *, shift=0.0):
        return Result(x + shift if scale is None else x * scale + shift)


X = torch.ones(2, 3)


def test_arguments_by_name_become_a_tuple_in_the_forwards_order():
    model = Named()
    assert argument_names(model) == ("x", "scale", "shift")
    assert in_order(model, (), {"shift": 1.0, "x": X}) == (X, None, 1.0)
    assert in_order(model, (X,), {}) == (X,)
    assert Task(model, {"scale": 2.0, "x": X}, [X]).example_inputs == (X, 2.0)


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((), {"y": X}, "no argument of Named.forward; its arguments are x, scale, shift"),
        ((X,), {"x": X}, "'x' twice"),
        ((), {"scale": X}, "lacks the argument 'x'"),
    ],
)
def test_arguments_that_fit_no_forward_are_refused(args, kwargs, said):
    with pytest.raises(TaskError, match=said):
        in_order(Named(), args, kwargs)


def test_an_exportable_forward_takes_keyword_only_arguments_by_place_and_gives_plain_outputs():
    model = Named()
    with exportable(model):
        assert torch.equal(model(X, 2.0, 1.0)["logits"], X * 2 + 1)
        assert model(X, shift=1.0)["extra"] is None
    assert isinstance(model(X), Result)
    assert "forward" not in vars(model)


def test_a_forward_that_was_set_on_the_object_is_put_back():
    model = nn.Identity()
    model.forward = own = lambda x: (x, x)
    with exportable(model):
        assert len(model(X)) == 2
    assert model.forward is own
