"""Families of Hugging Face's transformers as tiny models with random weights; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.entry import Entry

WORDS = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODER = {
    **WORDS,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
}
LLAMA = {**ENCODER, "num_key_value_heads": 1, "use_cache": False}
PICTURES = {"image_size": 8, "patch_size": 4, "num_labels": 3}


def family(name: str, config: str, **sizes: Any) -> Callable[[], nn.Module]:
    """Makes a class of transformers from a class of configurations and its sizes."""

    def build() -> nn.Module:
        import transformers

        model: nn.Module = getattr(transformers, name)(getattr(transformers, config)(**sizes))
        return model

    return build


def tokens(n: int) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, 20, (n, 6))}


def padded(n: int) -> dict[str, Tensor]:
    """Sentences of 3 to 6 tokens, padded, with their mask."""
    lengths = 3 + torch.arange(n) % 4
    mask = (torch.arange(6) < lengths[:, None]).long()
    return {"input_ids": tokens(n)["input_ids"] * mask, "attention_mask": mask}


def pixels(n: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(n, 3, 8, 8)}


def entry(shows: str, build: Callable[[], nn.Module], inputs: Any) -> Entry:
    """Of weights alone, to two files: to capture quantizers of activations takes most of the time."""
    return Entry(
        f"Hugging Face: {shows}; weights alone",
        build,
        inputs,
        needs="transformers",
        targets=("packed", "onnx"),
        settings={"placement": {"weight_bit_widths": (4, 8), "activation_bit_widths": ()}},
    )


FAMILIES: dict[str, Entry] = {
    "gpt2": Entry(
        "Hugging Face: GPT-2, without its cache",
        family(
            "GPT2LMHeadModel", "GPT2Config", **WORDS,
            n_embd=8, n_layer=1, n_head=2, n_positions=16, use_cache=False,
        ),
        tokens,
        needs="transformers",
    ),
    "llama": entry("Llama, without its cache", family("LlamaForCausalLM", "LlamaConfig", **LLAMA), tokens),
    "llama_cached": entry(
        "Llama, with its cache",
        family("LlamaForCausalLM", "LlamaConfig", **{**LLAMA, "use_cache": True}),
        tokens,
    ),
    "bert": entry(
        "BERT, with a mask",
        family("BertForSequenceClassification", "BertConfig", **ENCODER, num_labels=3),
        padded,
    ),
    "vit": entry(
        "ViT", family("ViTForImageClassification", "ViTConfig", **{**ENCODER, **PICTURES}), pixels
    ),
    "t5_encoder": entry(
        "T5's encoder, with a mask",
        family(
            "T5EncoderModel", "T5Config", **WORDS, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2
        ),
        padded,
    ),
}  # fmt: skip
