"""How llama.cpp computes each kind of language model: its name, its hyperparameters, what it cannot do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raysearch.errors import ExportError

Config = Mapping[str, Any]

GEMMA_PATTERN = 6
"""Of Gemma 3's layers every sixth attends to all tokens; llama.cpp has that built in."""


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures.

    Attributes:
        name: in the file.
        activations: of the MLP, by the names of transformers; the first is the usual one.
        interleaves_rotary: whether heads of q and k are rotated as pairs of neighbours, so that their rows
            are written in another order than transformers has them.
        norm_offset: added to the weights of norms, which transformers adds when it computes.
        has_window: whether layers with a sliding window are known.
    """

    name: str
    activations: tuple[str, ...] = ("silu", "swish")
    interleaves_rotary: bool = False
    norm_offset: float = 0.0
    has_window: bool = False


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", interleaves_rotary=True),
    "mistral": Architecture("llama", interleaves_rotary=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma3_text": Architecture(
        "gemma3", activations=("gelu_pytorch_tanh",), norm_offset=1.0, has_window=True
    ),
}
"""By the `model_type` of transformers."""


def architecture_of(config: Config) -> Architecture:
    """The architecture of a model.

    Raises:
        ExportError: llama.cpp, or this writer, does not compute the model; names the setting.
    """
    model_type = config["model_type"]
    if model_type not in ARCHITECTURES:
        raise ExportError(
            f"the target 'gguf' does not know the model type '{model_type}'; it knows "
            f"{', '.join(ARCHITECTURES)}. Leave 'gguf' out of export.targets."
        )
    architecture = ARCHITECTURES[model_type]
    for name, value in _unsupported(architecture, config).items():
        raise ExportError(
            f"the target 'gguf' does not write a {model_type} with {name} = {value!r}. Leave 'gguf' out of "
            f"export.targets."
        )
    return architecture


def hyperparameters(architecture: Architecture, config: Config) -> dict[str, int | float]:
    """What llama.cpp reads, by key; the keys are prefixed by the architecture's name.

    Args:
        architecture: of the model.
        config: of the model.
    """
    head_dim = _head_dim(config)
    rope = _rope(config)
    values: dict[str, int | float] = {
        "vocab_size": config["vocab_size"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": head_dim,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if architecture.has_window:
        values["attention.sliding_window"] = config["sliding_window"]
        values["rope.freq_base_swa"] = float(_rope(config, "sliding_attention")["rope_theta"])
    if rope.get("rope_type") == "linear":
        values["rope.scaling.factor"] = float(rope["factor"])
    return values


def rotary_factors(config: Config) -> npt.NDArray[np.float32] | None:
    """By what each rotary frequency is divided, where they are not all the same: Llama 3's scaling."""
    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    head_dim = _head_dim(config)
    frequencies = 1.0 / (rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim))
    wavelengths = 2 * math.pi / frequencies
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    turns = rope["original_max_position_embeddings"] / wavelengths
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    # Between the two ends the frequency itself is interpolated, as transformers does it.
    factors: npt.NDArray[np.float32] = (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
    return factors


def _unsupported(architecture: Architecture, config: Config) -> dict[str, Any]:
    """Settings that llama.cpp would compute otherwise."""
    refused: dict[str, Any] = {}
    for name in ("hidden_act", "hidden_activation"):
        if config.get(name, architecture.activations[0]) not in architecture.activations:
            refused[name] = config[name]
    for name in ("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"):
        if config.get(name):
            refused[name] = config[name]
    if config.get("partial_rotary_factor", 1.0) != 1.0:
        refused["partial_rotary_factor"] = config["partial_rotary_factor"]
    rope_type = _rope(config).get("rope_type", "default")
    if rope_type not in ("default", "linear", "llama3"):
        refused["rope_type"] = rope_type
    if config.get("query_pre_attn_scalar", _head_dim(config)) != _head_dim(config):
        refused["query_pre_attn_scalar"] = config["query_pre_attn_scalar"]
    if architecture.has_window:
        layers = range(1, config["num_hidden_layers"] + 1)
        usual = ["sliding_attention" if layer % GEMMA_PATTERN else "full_attention" for layer in layers]
        if config["layer_types"] != usual:
            refused["layer_types"] = config["layer_types"]
    elif (config.get("sliding_window") or math.inf) < config["max_position_embeddings"]:
        refused["sliding_window"] = config["sliding_window"]
    return refused


def _head_dim(config: Config) -> int:
    head_dim: int = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return head_dim


def _rope(config: Config, layers: str = "full_attention") -> Mapping[str, Any]:
    """Rotary parameters, of a kind of layers where each has its own."""
    parameters: Mapping[str, Any] = config["rope_parameters"]
    own: Mapping[str, Any] = parameters.get(layers, parameters)
    return own
