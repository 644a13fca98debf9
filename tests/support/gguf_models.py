"""Tiny language models of transformers in a directory, with a real tokenizer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raysearch.calibration import calibrate_model
from raysearch.config import load_config
from raysearch.controller import create_controller
from raysearch.placement import place_quantizers
from raysearch.records import BitAssignment, Scheme
from tests.support.export_cases import Case, forward_all

TEXT = "The quick brown fox jumps over the lazy dog. 1234 times!  Ünïcode, two spaces\nand new lines\n\n"
LLAMA3_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "use_cache": False,
}


def build(kind: str, **changes: Any) -> nn.Module:
    """A model of random weights that are large enough for its answers to differ."""
    import transformers as t

    torch.manual_seed(0)
    sizes = SIZES | changes
    model: nn.Module
    if kind == "llama":
        model = t.LlamaForCausalLM(t.LlamaConfig(**sizes))
    elif kind == "qwen2":
        model = t.Qwen2ForCausalLM(t.Qwen2Config(**sizes))
    elif kind == "qwen3":
        model = t.Qwen3ForCausalLM(t.Qwen3Config(**sizes | {"head_dim": 24}))
    else:
        scalar = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
        layers = sizes["num_hidden_layers"]
        kinds = ["full_attention" if n % 6 == 0 else "sliding_attention" for n in range(1, layers + 1)]
        model = t.Gemma3ForCausalLM(t.Gemma3TextConfig(**sizes | scalar | {"layer_types": kinds} | changes))
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.mul_(4)
            else:
                value.add_(torch.randn_like(value) * 0.1)
    return model.eval()


def save(model: nn.Module, directory: Path, bytes_are_merged: bool = True) -> nn.Module:
    """Save a model with a tokenizer that was trained on a sentence, and load it again."""
    import transformers as t

    tokenizer = merged_bytes() if bytes_are_merged else merged_characters()
    fast = t.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory)
        fast.save_pretrained(directory)
        loaded: nn.Module = type(model).from_pretrained(directory)
    return loaded.eval()


def merged_bytes() -> Any:
    """As Llama 3 and Qwen have it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_CUT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=310, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 5, trainer)
    return tokenizer


def merged_characters() -> Any:
    """As Llama 2 and Gemma have it, converted from SentencePiece."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=316, special_tokens=pieces, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 5, trainer)
    return tokenizer


def stripped(model: nn.Module, *schemes: str, length: int = 12) -> Case:
    """A model whose weights have the schemes in turn, each the nearest one that it may have."""
    example = (torch.randint(3, 300, (2, length)),)
    settings = load_config(
        overrides={"placement": {"weight_schemes": list(schemes), "activation_bit_widths": []}}
    )
    setup = place_quantizers(model, example, settings.placement)
    ranges = calibrate_model(model, setup, [example], forward=forward_all)
    chosen: dict[str, Scheme] = {}
    for group in setup.groups.values():
        wished = Scheme.of(schemes[len(chosen) % len(schemes)])
        chosen[group.id] = wished.nearest(group.schemes)
    assignment = BitAssignment(chosen)
    module = create_controller(model, setup, ranges, assignment).strip_model()

    def inputs(count: int) -> tuple[torch.Tensor]:
        return (torch.randint(3, 300, (count, length)),)

    return Case(module, setup, assignment, inputs, example)
