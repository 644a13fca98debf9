"""Families of Hugging Face's transformers as tiny models with random weights; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.model_directories import ENCODER, LLAMA, SIZES
from tests.zoo.entry import Entry

PICTURES = {"image_size": 8, "patch_size": 4, "num_labels": 3}


def family(name: str, config: str, **sizes: Any) -> Callable[[], nn.Module]:
    """Makes a class of transformers from a class of configurations and its sizes."""

    def build() -> nn.Module:
        import transformers

        model: nn.Module = getattr(transformers, name)(getattr(transformers, config)(**sizes))
        return model

    return build


class WhisperEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = {"d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 12}
        build = family(
            "WhisperModel", "WhisperConfig", **SIZES, **sizes, decoder_layers=1, decoder_attention_heads=2,
            decoder_ffn_dim=12, num_mel_bins=4, max_source_positions=6, max_target_positions=6,
            decoder_start_token_id=1,
        )  # fmt: skip
        self.encoder = build().encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x).last_hidden_state


def tokens(n: int) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, 20, (n, 6))}


def padded(n: int) -> dict[str, Tensor]:
    """Sentences of 3 to 6 tokens, padded, with their mask."""
    lengths = 3 + torch.arange(n) % 4
    mask = (torch.arange(6) < lengths[:, None]).long()
    return {"input_ids": tokens(n)["input_ids"] * mask, "attention_mask": mask}


def pixels(n: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(n, 3, 8, 8)}


PACKED = ("packed",)
"""Of families that are much like another one here, whose ONNX file is verified."""


def entry(
    shows: str,
    build: Callable[[], nn.Module],
    inputs: Any,
    targets: tuple[str, ...] = ("packed", "onnx"),
    kind: str = "",
) -> Entry:
    """Of weights alone, to few files: to capture quantizers of activations takes most of the time."""
    return Entry(
        f"Hugging Face: {shows}; weights alone",
        build,
        inputs,
        needs="transformers",
        targets=targets,
        settings={"placement": {"weight_bit_widths": (4, 8), "activation_bit_widths": ()}},
        kind=kind,
    )


FAMILIES: dict[str, Entry] = {
    "gpt2": Entry(
        "Hugging Face: GPT-2",
        family(
            "GPT2LMHeadModel", "GPT2Config", **SIZES,
            n_embd=8, n_layer=1, n_head=2, n_positions=16,
        ),
        tokens,
        needs="transformers",
        kind="causal-lm",
    ),
    "llama": entry(
        "Llama", family("LlamaForCausalLM", "LlamaConfig", **LLAMA), tokens, kind="causal-lm"
    ),
    "llama_cached": entry(
        "Llama, with its cache",
        family("LlamaForCausalLM", "LlamaConfig", **LLAMA),
        tokens,
        PACKED,
    ),
    "bert": entry(
        "BERT, with a mask",
        family("BertForSequenceClassification", "BertConfig", **ENCODER, num_labels=3),
        padded,
        kind="sequence-classification",
    ),
    "vit": entry(
        "ViT", family("ViTForImageClassification", "ViTConfig", **{**ENCODER, **PICTURES}), pixels,
        kind="image-classification",
    ),
    "t5_encoder": entry(
        "T5's encoder, with a mask",
        family(
            "T5EncoderModel", "T5Config", **SIZES, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2
        ),
        padded,
    ),
    "mistral": entry(
        "Mistral, sliding window",
        family("MistralForCausalLM", "MistralConfig", **LLAMA, head_dim=4, sliding_window=4),
        tokens,
        PACKED,
        kind="causal-lm",
    ),
    "qwen2": entry(
        "Qwen2", family("Qwen2ForCausalLM", "Qwen2Config", **LLAMA), tokens, PACKED, kind="causal-lm"
    ),
    "qwen3": entry(
        "Qwen3, normed heads",
        family("Qwen3ForCausalLM", "Qwen3Config", **LLAMA, head_dim=4), tokens, PACKED, kind="causal-lm",
    ),
    "gemma3": entry(
        "Gemma 3, tied embedding, sliding and full attention",
        family(
            "Gemma3ForCausalLM", "Gemma3TextConfig",
            **{**LLAMA, "num_hidden_layers": 2}, head_dim=4, sliding_window=4,
            layer_types=["sliding_attention", "full_attention"],
        ),
        tokens,
        PACKED,
        kind="causal-lm",
    ),
    "phi": entry("Phi", family("PhiForCausalLM", "PhiConfig", **LLAMA), tokens, PACKED, kind="causal-lm"),
    "opt": entry(
        "OPT",
        family(
            "OPTForCausalLM", "OPTConfig", **SIZES, hidden_size=8, num_hidden_layers=1, ffn_dim=12,
            num_attention_heads=2, max_position_embeddings=16, word_embed_proj_dim=8,
        ),
        tokens,
        PACKED,
        kind="causal-lm",
    ),
    "mixtral": entry(
        "Mixtral, experts behind a router",
        family(
            "MixtralForCausalLM", "MixtralConfig", **LLAMA, num_local_experts=2, num_experts_per_tok=1
        ),
        tokens,
        PACKED,
        kind="causal-lm",
    ),
    "mamba": entry(
        "Mamba, a recurrence in the forward",
        family("MambaForCausalLM", "MambaConfig", **SIZES, hidden_size=8, state_size=4, num_hidden_layers=1),
        tokens,
        PACKED,
        kind="causal-lm",
    ),
    "distilbert": entry(
        "DistilBERT, with a mask",
        family(
            "DistilBertForSequenceClassification", "DistilBertConfig",
            vocab_size=20, dim=8, n_layers=1, n_heads=2, hidden_dim=12, max_position_embeddings=16,
            num_labels=3, pad_token_id=0,
        ),
        padded,
        PACKED,
        kind="sequence-classification",
    ),
    "roberta": entry(
        "RoBERTa, masked tokens",
        family("RobertaForMaskedLM", "RobertaConfig", **ENCODER),
        tokens,
        PACKED,
        kind="masked-lm",
    ),
    "swin": entry(
        "Swin, shifted windows",
        family(
            "SwinForImageClassification", "SwinConfig",
            image_size=8, patch_size=2, embed_dim=4, depths=[2], num_heads=[2], window_size=2, num_labels=3,
        ),
        pixels,
        kind="image-classification",
    ),
    "convnext": entry(
        "ConvNeXt",
        family(
            "ConvNextForImageClassification", "ConvNextConfig",
            num_stages=2, hidden_sizes=[4, 6], depths=[1, 1], patch_size=2, num_labels=3,
        ),
        pixels,
        kind="image-classification",
    ),
    "whisper_encoder": entry("Whisper's encoder", WhisperEncoder, lambda n: (torch.randn(n, 4, 12),)),
}  # fmt: skip
