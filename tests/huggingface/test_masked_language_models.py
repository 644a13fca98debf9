"""A directory with a masked language model as a task."""

import math

import pytest
import torch
from torch.nn import functional as F

import raysearch
from raysearch.errors import TaskError
from raysearch.huggingface import masked_lm_task
from raysearch.task import load_task
from tests.support.model_directories import ENCODER, save_model, save_tokenizer, words

transformers = pytest.importorskip("transformers")

TEXT = words(1000)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    save_model(folder, "BertForMaskedLM", "BertConfig", **ENCODER)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def task(bert):
    return masked_lm_task(bert, TEXT, window=12)


def test_some_tokens_between_the_special_ones_are_masked(task, bert):
    columns = task.calibration.columns
    ids, places, labels = columns["input_ids"], columns["places"], columns["labels"]
    assert ids.shape == (80, 12)
    assert places.shape == labels.shape == (80, 2)
    assert (set(ids[:, 0].tolist()), set(ids[:, -1].tolist())) == ({1}, {2})
    assert set(ids.gather(1, places).flatten().tolist()) == {4}
    tokens = transformers.AutoTokenizer.from_pretrained(bert)(TEXT, add_special_tokens=False)["input_ids"]
    assert torch.equal(ids.scatter(1, places, labels)[:, 1:-1], torch.tensor(tokens[:800]).reshape(80, 10))
    assert len({tuple(row) for row in places.tolist()}) > 20
    again = masked_lm_task(bert, TEXT, window=12).calibration.columns["places"]
    assert torch.equal(again, places)


def test_it_is_judged_at_the_masks_alone(task):
    batch = task.validation.first(3)
    with torch.no_grad():
        every = task.model(input_ids=batch["input_ids"]).logits
        outputs = task.run(task.model, batch)
    assert outputs.shape == (3, 2, 20)
    for row in range(3):
        assert torch.equal(outputs[row], every[row, batch["places"][row]])
    expected = math.exp(F.cross_entropy(outputs.reshape(-1, 20).double(), batch["labels"].reshape(-1)))
    assert task.metrics["perplexity"](outputs, batch) == pytest.approx(expected, rel=1e-5)


def test_a_tokenizer_without_a_mask_is_refused(tmp_path):
    save_model(tmp_path, "BertForMaskedLM", "BertConfig", **ENCODER)
    save_tokenizer(tmp_path, mask_token=None)
    with pytest.raises(TaskError, match="has no mask token"):
        masked_lm_task(tmp_path, TEXT)


def test_positions_behind_those_of_padding_are_not_counted_twice(tmp_path):
    """RoBERTa's positions begin behind that of padding: of 16 it takes 15 tokens."""
    save_model(tmp_path, "RobertaForMaskedLM", "RobertaConfig", **ENCODER)
    save_tokenizer(tmp_path)
    task = masked_lm_task(tmp_path, TEXT)
    assert task.calibration.columns["input_ids"].shape[1] == 15
    with torch.no_grad():
        assert task.run(task.model, task.calibration.first(2)).isfinite().all()
    with pytest.raises(TaskError, match="at most 15 positions"):
        masked_lm_task(tmp_path, TEXT, window=16)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* traces did not reach")
def test_the_test_text_is_judged_once_at_the_end(task, tmp_path):
    result = raysearch.run(
        load_task(task),
        "avg_bits<=4",
        tmp_path,
        config={
            "placement": {"weight_bit_widths": (2, 4), "activation_bit_widths": ()},
            "search": {"num_trials": 2},
            "sensitivity": {"max_draws": 2},
            "rounding": {"refine_steps": 2},
            "calibration": {"num_samples": 8, "shard_size": 8},
            "export": {"targets": ("packed",)},
        },
        workers=0,
    )
    assert set(result.test_metrics) == {"float", "quantized"}
    assert set(result.test_metrics["quantized"]) == {"divergence", "agreement", "perplexity"}
    assert result.test_metrics["quantized"]["perplexity"] != result.quantized_metrics["perplexity"]
    errors = result.standard_errors["test_quantized"]
    # Ten windows of two masks each, of random words.
    assert 0 < errors["divergence"] < result.test_metrics["quantized"]["divergence"]
    assert 0.1 < errors["perplexity"] < 10
