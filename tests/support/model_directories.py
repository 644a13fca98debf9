"""Tiny Hugging Face directories: a random model and a tokenizer of a dozen words."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
WORDS = ["the", "a", "cat", "dog", "mat", "sat", "ran", "on", "and", "far", "old", "red", "saw", "up"]
SIZES = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODER = {
    **SIZES,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
LLAMA = {**ENCODER, "num_key_value_heads": 1}
LITTLE = {
    "search": {"num_trials": 2},
    "sensitivity": {"max_draws": 2},
    "rounding": {"refine_steps": 2},
    "calibration": {"num_samples": 8, "shard_size": 8},
    "export": {"targets": ("packed",)},
}
"""Settings of a run that does everything, and little of each."""


def words(count: int, seed: int = 0) -> str:
    """A text of so many words, each of which is a token."""
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def save_tokenizer(folder: Path, **tokens: str | None) -> None:
    """A tokenizer that puts <s> before a text and </s> behind it.

    Args:
        folder: where it is saved.
        **tokens: special tokens in place of those of `SPECIAL`; None for none.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    names = ("pad_token", "bos_token", "eos_token", "unk_token", "mask_token")
    chosen = {**dict(zip(names, SPECIAL, strict=True)), **tokens}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **chosen)
    fast.save_pretrained(folder)


def save_model(folder: Path, model: str, config: str, **sizes: Any) -> None:
    """A model of transformers with random weights.

    Args:
        folder: where it is saved.
        model: name of its class.
        config: name of its configuration's class.
        **sizes: of the configuration.
    """
    import transformers

    torch.manual_seed(0)
    configuration = getattr(transformers, config)(**sizes)
    built = getattr(transformers, model)(configuration)
    built.to(configuration.dtype or torch.float32).save_pretrained(folder)


def save_llama(folder: Path, **sizes: Any) -> Path:
    """A Llama with its tokenizer."""
    save_model(folder, "LlamaForCausalLM", "LlamaConfig", **{**LLAMA, **sizes})
    save_tokenizer(folder)
    return folder
