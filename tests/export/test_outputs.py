from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch

from raysearch.export.outputs import NamedOutputs, plain, tensor_leaves


@dataclass
class Answer:
    logits: torch.Tensor
    loss: None = None


class ModelOutput(OrderedDict):
    pass


def test_foreign_containers_become_plain_ones():
    x, y = torch.ones(1), torch.zeros(2)
    pair = namedtuple("Pair", "a b")
    assert plain(pair(x, [y])) == (x, [y])
    assert type(plain(pair(x, y))) is tuple
    assert plain(Answer(x)) == {"logits": x, "loss": None}
    assert type(plain(ModelOutput(logits=x))) is dict


def test_leaves_come_in_order_and_without_what_is_no_tensor():
    x, y = torch.ones(1), torch.zeros(2)
    leaves = tensor_leaves({"a": (x, None, 3), "b": Answer(y)})
    assert [id(leaf) for leaf in leaves] == [id(x), id(y)]


def test_named_outputs_answer_by_name_attribute_and_position():
    outputs = NamedOutputs(logits=1, hidden=2)
    assert (outputs["logits"], outputs.hidden, outputs[1]) == (1, 2, 2)
    with pytest.raises(AttributeError, match="no output 'loss'; it has logits, hidden"):
        _ = outputs.loss
