"""A tiny Llama whose linear layers have schemes of all widths, stripped, as a `Case` of the export tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from raysearch.calibration import calibrate_model
from raysearch.config import CalibrationConfig, PlacementConfig
from raysearch.controller import create_controller
from raysearch.placement import place_quantizers
from raysearch.records import BitAssignment, Scheme
from tests.support.export_cases import Case

EMBEDDING = "model.embed_tokens"
SYMMETRIC = ("2", "3g32", "4g16", "5g32", "6", "7g32", "8g64")
ASYMMETRIC = ("2g32a", "3g32", "4a", "5g32a", "6", "7g32a", "8g64")


def tiny_llama(dtype: torch.dtype = torch.float32, **settings: object) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "use_cache": False}
    torch.manual_seed(0)
    config = LlamaConfig(**{**sizes, **heads, "attention_bias": True, **settings})
    return LlamaForCausalLM._from_config(config, dtype=dtype).eval()


def token_ids(count: int) -> tuple[torch.Tensor]:
    return (torch.randint(0, 128, (count, 7), generator=torch.Generator().manual_seed(count)),)


def pretrained_case(schemes: Sequence[str], scale_dtype: str, also: Sequence[str] = ()) -> Case:
    """One scheme after the other, layer by layer; embeddings and the last layer's `down_proj` stay float.

    Args:
        schemes: in their order.
        scale_dtype: of the stored scales.
        also: what each weight might take besides.
    """
    model, example = tiny_llama(), token_ids(2)
    settings = PlacementConfig(
        weight_schemes=(*schemes, *also),
        activation_bit_widths=(),
        scale_dtype=scale_dtype,  # type: ignore[arg-type]
        ignored_scopes=(EMBEDDING, "model.layers.1.mlp.down_proj"),
    )
    setup = place_quantizers(model, example, settings)
    calibration = CalibrationConfig(weights="min_max")
    ranges = calibrate_model(model, setup, [example], calibration, forward=lambda m, batch: m(*batch).logits)
    chosen = {
        name: Scheme.of(schemes[index % len(schemes)]).nearest(group.schemes)
        for index, (name, group) in enumerate(setup.groups.items())
    }
    assignment = BitAssignment(chosen)
    stripped = create_controller(model, setup, ranges, assignment).strip_model(do_copy=True)
    return Case(stripped, setup, assignment, token_ids, example)
