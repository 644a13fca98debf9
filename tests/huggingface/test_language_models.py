"""A directory with a causal language model as a task."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import raysearch
from raysearch.artifacts import codecs, resolve_run
from raysearch.errors import DataError, TaskError
from raysearch.huggingface import causal_lm_task, language_models
from tests.support.model_directories import LITTLE, save_llama, words

transformers = pytest.importorskip("transformers")

TEXT = words(1050)
SETTINGS = {**LITTLE, "placement": {"weight_bit_widths": (4, 8)}}


@pytest.fixture(scope="module")
def task(llama):
    return causal_lm_task(llama, TEXT, window=11)


def test_windows_are_the_text_in_its_order_and_the_parts_share_none(task, llama):
    calibration = task.calibration.columns["input_ids"]
    validation = task.validation.columns["input_ids"]
    tokens = transformers.AutoTokenizer.from_pretrained(llama)(TEXT, add_special_tokens=False)["input_ids"]
    rows = torch.tensor(tokens).reshape(105, 10)
    # 105 windows of <s> and ten words: ten are of the test, ten of validation.
    assert calibration.shape == (85, 11)
    assert torch.equal(calibration[:, 1:], rows[:85])
    assert torch.equal(validation[:, 1:], rows[85:95])
    assert torch.equal(task.test.columns["input_ids"][:, 1:], rows[95:])
    assert set(calibration[:, 0].tolist()) == {1}


def test_texts_of_their_own_leave_the_text_to_calibration(llama, tmp_path):
    file = tmp_path / "validation.txt"
    file.write_text(words(60, 1))
    task = causal_lm_task(llama, words(100), validation_text=file, test_text=words(20, 2), window=11)
    assert len(task.calibration) == 10
    assert (len(task.validation), len(task.test)) == (6, 2)


def test_the_model_is_loaded_as_it_was_saved_without_its_cache(task, llama):
    saved = transformers.LlamaForCausalLM.from_pretrained(llama)
    assert saved.config.use_cache
    assert not task.model.config.use_cache
    batch = task.calibration.first(2)
    with torch.no_grad():
        outputs = task.run(task.model, batch)
        assert torch.equal(outputs.logits, saved(**batch).logits)
    assert "past_key_values" not in outputs


def test_perplexity_is_that_of_the_next_tokens(task):
    batch = task.calibration.first(3)
    with torch.no_grad():
        outputs = task.run(task.model, batch)
    logits, tokens = outputs.logits[:, :-1], batch["input_ids"][:, 1:]
    expected = math.exp(F.cross_entropy(logits.reshape(-1, 20).double(), tokens.reshape(-1)))
    assert task.metrics["perplexity"](outputs, batch) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* traces did not reach")
def test_a_directory_becomes_a_verified_file(task, tmp_path):
    result = raysearch.run(task, "avg_bits<=6", tmp_path, config=SETTINGS, run_id="llama", workers=0)
    assert result.quantized_metrics["divergence"] > 0
    # Weights alone, as the task's settings say.
    assert all(name.endswith("weight") for name in result.assignment)
    assert result.float_metrics["perplexity"] == pytest.approx(20, rel=0.3)
    checks = resolve_run("llama", tmp_path).load(codecs.MANIFEST).checks
    assert [check.target for check in checks] == ["packed"]
    batch = task.validation.first(3)
    with torch.no_grad():
        assert raysearch.load_model(result.model_dir)(**batch)["logits"].shape == (3, 11, 20)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* traces did not reach")
def test_a_directory_in_bfloat16_stays_so(tmp_path):
    task = causal_lm_task(save_llama(tmp_path / "model", dtype="bfloat16"), TEXT, window=11)
    assert task.model.dtype == torch.bfloat16
    result = raysearch.run(task, "avg_bits<=6", tmp_path, config=SETTINGS, run_id="half", workers=0)
    loaded = raysearch.load_model(result.model_dir)
    with torch.no_grad():
        assert loaded(**task.validation.first(2))["logits"].dtype == torch.bfloat16


def test_shards_are_so_small_that_their_logits_fit(llama, monkeypatch):
    def shard_sizes():
        settings = causal_lm_task(llama, TEXT, window=11).settings
        return [settings[name]["shard_size"] for name in ("calibration", "validation", "search")]

    assert shard_sizes() == [32, 256, 64]
    monkeypatch.setattr(language_models, "MAX_LOGITS", 40 * 11 * 20)
    assert shard_sizes() == [32, 40, 40]
    monkeypatch.setattr(language_models, "MAX_LOGITS", 1)
    assert shard_sizes() == [1, 1, 1]


def test_the_default_window_is_what_the_model_takes(llama):
    assert causal_lm_task(llama, words(100)).calibration.columns["input_ids"].shape[1] == 16


def test_a_window_longer_than_the_model_takes_is_refused(llama):
    with pytest.raises(TaskError, match="window is 17 tokens, and LlamaForCausalLM takes at most 16"):
        causal_lm_task(llama, TEXT, window=17)


def test_a_window_without_a_next_token_is_refused(llama):
    with pytest.raises(TaskError, match="window is 1 tokens; it must be at least 2"):
        causal_lm_task(llama, TEXT, window=1)


def test_a_text_shorter_than_a_window_is_refused(llama):
    with pytest.raises(DataError, match="calibration text has 9 tokens, and a window takes 10"):
        causal_lm_task(llama, words(9), window=11)


def test_a_text_of_fewer_windows_than_parts_is_refused(llama):
    with pytest.raises(DataError, match="the text has 2 windows of 11 tokens, and 3 parts"):
        causal_lm_task(llama, words(20), window=11)


def test_the_name_of_a_file_given_as_text_is_told(llama, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    with pytest.raises(DataError, match=r"the name of a file; to read it, give Path\('.*text.txt'\)"):
        causal_lm_task(llama, str(file), window=16)


def test_a_file_that_is_missing_or_no_text_is_refused(llama, tmp_path):
    with pytest.raises(DataError, match=r"none.txt' cannot be read: No such file"):
        causal_lm_task(llama, Path(tmp_path / "none.txt"))
    (tmp_path / "picture").write_bytes(b"\xff\xd8")
    with pytest.raises(DataError, match=r"picture' is no UTF-8 text \(byte 0\)"):
        causal_lm_task(llama, tmp_path / "picture")


def test_a_tokenizer_of_another_model_is_refused(llama, tmp_path):
    save_llama(tmp_path, vocab_size=8)
    with pytest.raises(TaskError, match="the model knows 8 tokens"):
        causal_lm_task(tmp_path, TEXT)
