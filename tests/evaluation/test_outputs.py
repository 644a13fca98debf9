"""The named outputs of a model, whatever container they come in."""

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from raysearch.evaluation.batches import take
from raysearch.evaluation.outputs import difference, flat_rows, named_outputs, num_bytes, values_per_sample

X, Y = torch.randn(2, 3), torch.randn(2, 4, 5)
CACHE = ((X, X), (X, X))


@dataclass
class Named:
    logits: torch.Tensor
    boxes: torch.Tensor | None = None


Pair = namedtuple("Pair", "score extra")


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        (X, ["output"]),
        ((X, Y), ["0", "1"]),
        ([X, [Y, {"deep": X + 1}]], ["0", "1.0", "1.1.deep"]),
        ({"hidden": Y, "logits": X}, ["logits", "hidden"]),
        (Named(X, Y), ["logits", "boxes"]),
        (Named(X), ["logits"]),
        (Pair(X, Y), ["score", "extra"]),
        (SimpleNamespace(features=Y, logits=X), ["logits", "features"]),
        ({"logits": X, "past_key_values": CACHE}, ["logits"]),
        ((X, torch.ones(2, dtype=torch.long), torch.tensor(1.0), None, "text", X), ["0"]),
        (torch.ones(2, dtype=torch.long), []),
    ],
)
def test_every_floating_tensor_is_named_by_its_path(outputs, names):
    assert list(named_outputs(outputs)) == names


def test_a_hugging_face_output_is_looked_through():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    made = outputs.Seq2SeqLMOutput(logits=X, past_key_values=CACHE, encoder_last_hidden_state=Y)
    assert list(named_outputs(made)) == ["logits", "encoder_last_hidden_state"]


def test_several_outputs_are_rows_like_one():
    judged = (X, Y)
    assert flat_rows(X) is X
    assert torch.equal(flat_rows(judged), torch.cat([X, Y.reshape(2, 20)], 1))
    assert values_per_sample(judged) == 23
    assert num_bytes(judged) == 4 * 46
    change = difference(judged, (X - 1, Y))
    assert change[0].dtype == torch.float64
    assert torch.allclose(change[0], torch.ones(2, 3, dtype=torch.float64))
    assert [len(part) for part in take(judged, 0, 1)] == [1, 1]
