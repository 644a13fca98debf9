"""Float language models as GGUF files, in llama.cpp."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from raysearch.errors import ExportError, StorageError
from raysearch.export import StrippedModel
from raysearch.export.gguf.file import write_gguf
from raysearch.export.gguf.runtime import GgufModel, Part
from raysearch.records import BitAssignment, QuantizerSetup
from tests.support.gguf_models import TEXT, build, save

for package in ("gguf", "xllamacpp", "transformers"):
    pytest.importorskip(package)

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def written(model: nn.Module, folder: Path) -> Path:
    path = folder / "model.gguf"
    ids = torch.zeros(1, 4, dtype=torch.long)
    write_gguf(StrippedModel(model, QuantizerSetup({}, {}), BitAssignment({}), (ids,)), path)
    return path


def greatest_difference(model: nn.Module, path: Path, length: int = 20) -> float:
    ids = torch.randint(3, 300, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(ids).logits.float().log_softmax(-1)
    logits = GgufModel(path)(ids).logits
    assert expected.std() > 0.3
    return float((logits - expected).abs().max())


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "attention_bias": True, "rope_parameters": LLAMA3_ROPE}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
        ("gemma3", {"num_hidden_layers": 7}),
    ],
)
def test_llama_cpp_computes_what_the_module_computes(
    tmp_path: Path, kind: str, changes: dict[str, object]
) -> None:
    model = save(build(kind, **changes), tmp_path / "model", bytes_are_merged=kind != "gemma3")
    # llama.cpp's GELU is a table.
    tolerance = 5e-3 if kind == "gemma3" else 2e-4
    assert greatest_difference(model, written(model, tmp_path)) < tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_stay_as_they_are(tmp_path: Path, dtype: torch.dtype) -> None:
    model = build("llama").to(dtype)
    path = written(model, tmp_path)
    assert greatest_difference(model.float(), path, 6) < 2e-2


@pytest.mark.parametrize("bytes_are_merged", [True, False])
def test_text_becomes_the_same_tokens(tmp_path: Path, bytes_are_merged: bool) -> None:
    import transformers

    kind = "llama" if bytes_are_merged else "gemma3"
    model = save(build(kind), tmp_path / "model", bytes_are_merged)
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")(TEXT)["input_ids"]
    loaded = GgufModel(written(model, tmp_path), Part(prefixes=1))
    answer = loaded.complete(TEXT)
    assert answer["usage"]["prompt_tokens"] == len(ids)
    by_ids = loaded(torch.tensor([ids])).logits[0, -1]
    assert torch.allclose(loaded.next_token(TEXT), by_ids, atol=1e-5)


def test_a_part_is_computed_of_few_prompts_prefixes_and_tokens(tmp_path: Path) -> None:
    path = written(build("llama"), tmp_path)
    ids = torch.randint(3, 300, (3, 9))
    logits = GgufModel(path, Part(prompts=2, prefixes=3, tokens=5))(ids).logits
    assert logits.isfinite().sum(-1)[:2].tolist() == [[5, 0, 0, 0, 5, 0, 0, 0, 5]] * 2
    assert logits[2].isnan().all()


def test_masked_tokens_are_left_out(tmp_path: Path) -> None:
    loaded = GgufModel(written(build("llama"), tmp_path))
    ids = torch.randint(3, 300, (1, 6))
    mask = torch.tensor([[0, 1, 1, 1, 1, 0]])
    logits = loaded(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(logits[:, 1:5], loaded(ids[:, 1:5]).logits)
    assert logits[0, [0, 5]].isnan().all()


def test_a_longer_prompt_gets_a_larger_context(tmp_path: Path) -> None:
    loaded = GgufModel(written(build("llama"), tmp_path), Part(prefixes=1))
    assert loaded(torch.randint(3, 300, (1, 300))).logits[0, -1].isfinite().all()


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "rope_type",
        ),
        ("gemma3", {"query_pre_attn_scalar": 7}, "query_pre_attn_scalar = 7"),
        ("gemma3", {"layer_types": ["full_attention"] * 2}, "layer_types"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(
    tmp_path: Path, kind: str, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(ExportError, match=words):
        written(build(kind, **changes), tmp_path)


def test_other_models_are_refused(tmp_path: Path) -> None:
    import transformers as t

    with pytest.raises(ExportError, match="writes causal language models of transformers, and Linear"):
        written(nn.Linear(2, 2), tmp_path)
    config = t.GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2)
    with pytest.raises(ExportError, match="does not know the model type 'gpt2'; it knows llama"):
        written(t.GPT2LMHeadModel(config), tmp_path)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    path = written(build("llama"), tmp_path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(StorageError, match=r"model\.gguf is no GGUF file"):
        GgufModel(path)
