"""What is refused of a model directory, before anything is computed."""

import json
import shutil

import pytest
import torch

from raysearch.errors import TaskError
from raysearch.huggingface import causal_lm_task
from raysearch.huggingface.directory import ModelDirectory
from tests.support.model_directories import LLAMA, words

transformers = pytest.importorskip("transformers")


@pytest.fixture
def directory(llama, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(llama, tmp_path / "model")


def set_config(directory, **values):
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def assert_refused(directory, match, **options):
    with pytest.raises(TaskError, match=match):
        causal_lm_task(directory, words(200), **options)


def test_a_directory_that_is_not_there(tmp_path):
    assert_refused(tmp_path / "none", r"none' does not exist; nothing is downloaded")


def test_a_directory_without_configuration(directory):
    (directory / "config.json").unlink()
    assert_refused(directory, "holds no config.json")


def test_a_configuration_that_is_no_json(directory):
    (directory / "config.json").write_text("{")
    assert_refused(directory, r"config.json' cannot be read")
    (directory / "config.json").write_text("[]")
    assert_refused(directory, "holds a list; it must hold a mapping")


def test_a_directory_without_weights(directory):
    (directory / "model.safetensors").unlink()
    assert_refused(directory, r"holds no weights \(looked for \*.safetensors\)")


def test_a_directory_without_tokenizer(directory):
    (directory / "tokenizer.json").unlink()
    assert_refused(directory, r"holds no tokenizer \(looked for tokenizer.json")


def test_a_tokenizer_that_is_damaged(directory):
    (directory / "tokenizer.json").write_text("{}")
    assert_refused(directory, "the tokenizer in '.*' cannot be loaded")


def test_an_architecture_that_transformers_does_not_know(directory):
    set_config(directory, model_type="llama9")
    assert_refused(directory, "model_type 'llama9', which transformers .* does not know")


def test_a_model_of_another_task(llama):
    with pytest.raises(TaskError, match=r"'llama', which transformers .* know as AutoModelForMaskedLM"):
        ModelDirectory(llama).load_model("AutoModelForMaskedLM")


def test_a_masked_model_is_no_causal_one(directory):
    set_config(directory, architectures=["BertForMaskedLM"])
    with pytest.raises(TaskError, match=r"is a BertForMaskedLM, .* choose masked_lm_task"):
        ModelDirectory(directory).load_model("AutoModelForCausalLM")


def test_a_head_that_was_not_saved_would_be_random(llama):
    with pytest.raises(TaskError, match=r"AutoModelForSequenceClassification: score.weight would be random"):
        ModelDirectory(llama).load_model("AutoModelForSequenceClassification")


def test_weights_of_other_sizes(directory):
    set_config(directory, hidden_size=16)
    assert_refused(directory, "model_type 'llama'\\) cannot be loaded|would be random")


def test_a_model_that_is_quantized_already(directory):
    set_config(directory, quantization_config={"quant_method": "gptq"})
    assert_refused(directory, "is quantized already .*'gptq'")


REMOTE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({witness!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = "own-llama"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_the_directory_is_run_only_where_it_is_allowed(directory, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    witness = tmp_path / "ran"
    (directory / "own.py").write_text(REMOTE.format(witness=str(witness)))
    set_config(
        directory,
        model_type="own-llama",
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    )
    assert_refused(directory, r"brings Python code of its own .*--with trust_remote_code=true")
    assert not witness.exists()
    task = causal_lm_task(directory, words(200), trust_remote_code=True)
    assert witness.exists()
    assert type(task.model).__name__ == "OwnModel"


def test_pickled_weights_are_read_only_where_they_are_allowed(directory):
    (directory / "model.safetensors").unlink()
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    torch.save(model.state_dict(), directory / "pytorch_model.bin")
    assert_refused(directory, r"are pickle files \(pytorch_model.bin\).*--with allow_pickle=true")
    task = causal_lm_task(directory, words(200), allow_pickle=True)
    assert torch.equal(task.model.lm_head.weight, model.lm_head.weight)
