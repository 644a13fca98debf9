"""From a model directory to a directory that `from_pretrained` loads: quantized, with its tokenizer."""

import json

import pytest

import raysearch
from raysearch.artifacts import codecs, resolve_run
from raysearch.errors import ConfigError
from raysearch.export import TARGETS
from raysearch.huggingface import causal_lm_task
from tests.support.model_directories import save_llama, words

NAME = "compressed-tensors"
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(bool(TARGETS[NAME].extra.missing()), reason="its extra is not installed")

SETTINGS = {
    "placement": {"weight_schemes": ("3g8", "4", "8"), "activation_bit_widths": ()},
    "search": {"num_trials": 2},
    "sensitivity": {"max_draws": 2},
    "rounding": {"refine": ()},
    "calibration": {"num_samples": 8, "shard_size": 8},
    "export": {"targets": ("packed", "compressed-tensors")},
}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    directory = save_llama(tmp_path_factory.mktemp("llama"), hidden_size=16, head_dim=8)
    return causal_lm_task(directory, words(1050), window=11)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.* traces did not reach")
def test_a_directory_becomes_a_directory_whose_logits_are_those_of_the_packed_model(task, tmp_path):
    placement = {**SETTINGS["placement"], "ignored_scopes": ("model.embed_tokens",)}
    config = {**SETTINGS, "placement": placement}
    result = raysearch.run(task, "avg_bits<=6", tmp_path, config=config, run_id="llama", workers=0)
    store = resolve_run("llama", tmp_path)
    manifest = store.load(codecs.MANIFEST)
    checks = {check.target: check for check in manifest.checks}
    assert checks["packed"].max_abs_difference == 0
    # Shards of another size are multiplied by other kernels, that of one of the processes alone is not.
    assert checks[NAME].max_abs_difference == 0
    assert not [note for note in manifest.notes if note.startswith(NAME)]

    folder = tmp_path / "llama" / "model"
    assert str(folder) in str(result.model_dir)
    names = {file.path for file in manifest.files if file.path.startswith(f"{NAME}/")}
    assert names == {path.relative_to(folder).as_posix() for path in (folder / NAME).iterdir()}
    assert f"{NAME}/tokenizer.json" in names
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / NAME)
    assert tokenizer("the cat")["input_ids"] == [1, 5, 7, 2]
    written = json.loads((folder / NAME / "config.json").read_text())
    # The task switched the cache off for the capture; who generates wants it.
    assert written.get("use_cache", True)
    assert not task.model.config.use_cache

    (folder / NAME / "stray.txt").write_text("")
    again = raysearch.load_run("llama", tmp_path).verify(targets=["packed"])
    assert again.num_files == len(manifest.files)
    assert "the manifest does not list compressed-tensors/stray.txt, so it was not checked." in again.notes


def test_what_the_directory_cannot_hold_is_refused_before_compute(task, tmp_path):
    with pytest.raises(ConfigError, match="does not hold quantized weights of Embedding"):
        raysearch.run(task, "avg_bits<=6", tmp_path, config=SETTINGS, run_id="llama", workers=0)
    assert not list(tmp_path.iterdir())
