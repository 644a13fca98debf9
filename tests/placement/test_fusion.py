"""Weights that servers fuse: which these are in the captured graph, and that they share a scheme."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raysearch.config import PlacementConfig
from raysearch.errors import PlacementError
from raysearch.placement import place_quantizers
from raysearch.placement.capture import capture
from raysearch.placement.fusion import STRUCTURES, find_fusions
from raysearch.records import BitAssignment, QuantizerSetup
from tests.zoo.families import ENCODER, LLAMA, family

IDS = (torch.randint(3, 20, (2, 6), generator=torch.Generator().manual_seed(0)),)

MOE = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 6}
LINEAR_ATTENTION = {
    "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 4,
    "linear_value_head_dim": 4, "layer_types": ["linear_attention"], "use_cache": False,
}  # fmt: skip
LATENT = {"q_lora_rank": 6, "kv_lora_rank": 4, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
WORDS = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
T5 = {**WORDS, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2}

QKV = "layers.0.self_attn: q_proj k_proj v_proj"
GATED = "layers.0.mlp: gate_proj up_proj"


class EncoderDecoder(nn.Module):
    """T5's decoder reads what its encoder gives in every one of its blocks."""

    def __init__(self) -> None:
        super().__init__()
        config = {**T5, "use_cache": False, "decoder_start_token_id": 1}
        self.t5 = family("T5ForConditionalGeneration", "T5Config", **config)()

    def forward(self, ids: Tensor) -> Tensor:
        return self.t5(input_ids=ids, decoder_input_ids=ids).logits


FAMILIES: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "llama": (family("LlamaForCausalLM", "LlamaConfig", **LLAMA), [QKV, GATED]),
    "llama_eager": (
        family("LlamaForCausalLM", "LlamaConfig", **LLAMA, attn_implementation="eager"), [QKV, GATED],
    ),
    "mistral": (family("MistralForCausalLM", "MistralConfig", **LLAMA, sliding_window=4), [QKV, GATED]),
    "qwen2": (family("Qwen2ForCausalLM", "Qwen2Config", **LLAMA), [QKV, GATED]),
    "qwen3": (family("Qwen3ForCausalLM", "Qwen3Config", **LLAMA, head_dim=4), [QKV, GATED]),
    "gemma3": (family("Gemma3ForCausalLM", "Gemma3TextConfig", **LLAMA, head_dim=4), [QKV, GATED]),
    # Attention and the rest of a block read one tensor.
    "phi": (family("PhiForCausalLM", "PhiConfig", **ENCODER, use_cache=False), [QKV]),
    "cohere": (family("CohereForCausalLM", "CohereConfig", **LLAMA), [QKV, GATED]),
    "gpt2": (family("GPT2Model", "GPT2Config", **WORDS, n_embd=8, n_layer=1, n_head=2, use_cache=False), []),
    "opt": (
        family(
            "OPTModel", "OPTConfig", **WORDS, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            ffn_dim=12, max_position_embeddings=16, word_embed_proj_dim=8, use_cache=False,
        ),
        [QKV],
    ),
    "bert": (family("BertModel", "BertConfig", **ENCODER), ["layer.0.attention.self: query key value"]),
    "t5": (
        EncoderDecoder,
        [
            "encoder.block.0.layer.0.SelfAttention: q k v",
            "encoder.block.1.layer.0.SelfAttention: q k v",
            "decoder.block.0.layer.0.SelfAttention: q k v",
            "decoder.block.0.layer.1.EncDecAttention: k v",
            "decoder.block.1.layer.0.SelfAttention: q k v",
            "decoder.block.1.layer.1.EncDecAttention: k v",
        ],
    ),
    # Routers and shared experts read what the experts read.
    "mixtral": (family("MixtralForCausalLM", "MixtralConfig", **LLAMA, num_local_experts=3), [QKV]),
    "qwen2_moe": (
        family("Qwen2MoeForCausalLM", "Qwen2MoeConfig", **LLAMA, **MOE, shared_expert_intermediate_size=6),
        [QKV, "layers.0.mlp.shared_expert: gate_proj up_proj"],
    ),
    "deepseek": (
        family(
            "DeepseekV3ForCausalLM", "DeepseekV3Config", **{**LLAMA, "num_key_value_heads": 2}, **LATENT,
            n_routed_experts=2, num_experts_per_tok=1, n_group=1, topk_group=1, first_k_dense_replace=1,
        ),
        ["layers.0.self_attn: q_a_proj kv_a_proj_with_mqa", GATED],
    ),
    "qwen3_5": (
        family("Qwen3_5ForCausalLM", "Qwen3_5TextConfig", **LLAMA, **LINEAR_ATTENTION, head_dim=4),
        [
            "layers.0.linear_attn: in_proj_qkv in_proj_z",
            "layers.0.linear_attn: in_proj_b in_proj_a",
            GATED,
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_parallel_projections_are_read_off_the_graph(name: str) -> None:
    pytest.importorskip("transformers")
    build, expected = FAMILIES[name]
    torch.manual_seed(0)
    fusions = find_fusions(capture(build().eval(), IDS), STRUCTURES)
    texts = []
    for fusion in fusions:
        paths = [weight.removesuffix(".weight").rsplit(".", 1) for weight in fusion.weights]
        assert len({path for path, _ in paths}) == 1
        texts.append(f"{paths[0][0]}: {' '.join(layer for _, layer in paths)}")
    assert len(texts) == len(expected)
    for text, end in zip(texts, expected, strict=True):
        assert text.endswith(end), (text, end)


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.w1(x).sigmoid() * self.w3(x))


class Mixture(nn.Module):
    """All experts run, and a router weighs them; beside them one that a gate of its own weighs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 32)
        self.router, self.gate = nn.Linear(32, 3), nn.Linear(32, 1)
        self.experts = nn.ModuleList([Expert() for _ in range(3)])
        self.shared = Expert()
        self.head = nn.Linear(32, 20)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        shares = self.router(x).softmax(-1)
        total = self.shared(x) * self.gate(x).sigmoid()
        for index, expert in enumerate(self.experts):
            total = total + expert(x) * shares[..., index : index + 1]
        return self.head(x + total)


def mixture(profile: str = "vllm", **settings: Any) -> QuantizerSetup:
    torch.manual_seed(0)
    return place_quantizers(Mixture().eval(), IDS, PlacementConfig(profile=profile, **settings))


def test_all_layers_of_all_experts_are_one() -> None:
    setup = mixture()
    groups = [group.points for group in setup.groups.values()]
    experts = tuple(f"experts.{index}.{name}.weight" for index in range(3) for name in ("w1", "w3", "w2"))
    assert sorted(groups, key=len) == [
        ("router.weight",), ("shared.w2.weight",), ("gate.weight",), ("head.weight",),
        ("shared.w1.weight", "shared.w3.weight"), experts,
    ]  # fmt: skip
    reason = "they are the experts that router.weight routes to; vllm fuses them"
    assert setup.groups["experts.0.w1.weight"].reason == reason
    reason = "they read one tensor and meet in one product; vllm fuses them"
    assert setup.groups["shared.w1.weight"].reason == reason
    assert QuantizerSetup.from_json(setup.to_json()) == setup
    assert "reason" not in mixture("any").to_json(), "what names runs so far stays as it was"
    assert set(BitAssignment.uniform(setup, 4).bits) == set(setup.groups), "one entry a group"


def test_what_is_set_for_one_is_set_for_all() -> None:
    setup = mixture(
        weight_schemes=("4g16", "4", 8), profile="any", overrides={"shared.w3": {"mode": "asymmetric"}}
    )
    assert setup.points["shared.w1.weight"].spec is None, "nothing is fused"
    setup = mixture(
        weight_bit_widths=(4, 8), pins={"experts.1.w2": 8}, overrides={"shared.w3": {"mode": "asymmetric"}}
    )
    assert setup.group_of("experts.0.w1.weight").schemes == (8,)
    modes = {setup.points[f"shared.{name}.weight"].grid_spec.mode for name in ("w1", "w3")}
    assert modes == {"asymmetric"}
    contrary = {"shared.w1": {"mode": "symmetric"}, "shared.w3": {"mode": "asymmetric"}}
    with pytest.raises(PlacementError, match=r"mode of shared.w1.weight to symm.*shared.w3.weight to asymm"):
        mixture(overrides=contrary)
    with pytest.raises(PlacementError, match=r"experts.0.w1.weight to 4, experts.2.w3.weight to 8"):
        mixture(pins={"experts.0.w1": 4, "experts.2.w3": 8})


def test_where_one_stays_float_all_do() -> None:
    setup = mixture(ignored_scopes=("shared.w3",))
    assert not {"shared.w1.weight", "shared.w3.weight"} & set(setup.points)
    assert "shared.w2.weight" in setup.points
    assert setup.coverage is not None
    entries = {weight.name: weight for weight in setup.coverage.floating}
    assert entries["shared.w1.weight"].is_chosen
    assert entries["shared.w1.weight"].reason == (
        "shared.w3.weight, which the profile 'vllm' fuses with it, is left out by "
        "placement.target_scopes or ignored_scopes"
    )
    with pytest.raises(
        PlacementError, match=r"no weight is left.*' and \d+ more \(left out by .*\(shared.w1.weight, which"
    ):
        mixture(target_scopes=("shared.w3",))
