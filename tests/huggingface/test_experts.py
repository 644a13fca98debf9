"""Mixtures of experts: captured in torch's own operations, or refused for their size."""

import pytest
import torch

from raysearch.errors import TaskError
from raysearch.huggingface import experts
from raysearch.huggingface.experts import gather_experts
from tests.support.model_directories import LLAMA

transformers = pytest.importorskip("transformers")


@pytest.fixture
def mixture():
    config = transformers.MixtralConfig(**LLAMA, num_local_experts=3, num_experts_per_tok=2)
    return transformers.MixtralForCausalLM(config).eval()


def test_experts_run_in_operations_of_torch_with_the_same_outputs(mixture):
    ids = torch.arange(16).reshape(2, 8)
    with torch.no_grad():
        before = mixture(ids).logits
        gather_experts(mixture, 8)
        assert mixture.config._experts_implementation == "batched_mm"
        torch.testing.assert_close(mixture(ids).logits, before)


def test_copies_that_are_too_large_are_refused_with_the_window_that_fits(mixture, monkeypatch):
    # Two experts a token, each of 24 * 8 and 8 * 12 values.
    monkeypatch.setattr(experts, "MOST_GATHERED", 3 * 2 * 4 * (24 * 8 + 8 * 12))
    with pytest.raises(TaskError, match=r"MixtralForCausalLM is a mixture .* at most 3 tokens, or a"):
        gather_experts(mixture, 4)
    gather_experts(mixture, 3)
    monkeypatch.setattr(experts, "MOST_GATHERED", 1)
    with pytest.raises(TaskError, match=r"are allowed\. Take a model without experts"):
        gather_experts(mixture, 4)


def test_a_model_without_experts_is_left_as_it_is():
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    before = model.config._experts_implementation
    gather_experts(model, 16)
    assert model.config._experts_implementation == before
