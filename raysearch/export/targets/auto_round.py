"""The auto-round target: a Hugging Face directory whose weights may have zero points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raysearch.controller import StrippedWeight
from raysearch.export.extras import Extra
from raysearch.export.packing import pack_rows
from raysearch.export.pretrained.directory import float_linears
from raysearch.export.targets.capability import EVERY_WIDTH, Capability
from raysearch.export.targets.pretrained_target import PretrainedTarget
from raysearch.records import QuantizationPoint

_MULTIPLE = 32
"""Inputs and outputs of a layer are a multiple of it."""
_FLOAT_BITS = 16
"""The width that stands for a layer that is not quantized."""


class AutoRoundTarget(PretrainedTarget):
    """A directory in auto-round's own packing: codes of 2 to 8 bits, with zero points or without.

    Each weight is `qweight`, the little-endian stream along the inputs, transposed, with `scales` in float16
    and `qzeros`, packed along the outputs. transformers runs it through auto-round, on the CPU by torch; the
    weights stay packed. Its kernels decode in float16.
    """

    name = "auto-round"
    folder = "auto-round"
    files = ("auto-round/config.json", "auto-round/model.safetensors")
    capability = Capability(
        {width: width for width in EVERY_WIDTH},
        activations=(),
        weight_granularity=("per_channel", "per_group"),
    )
    extra = Extra("auto-round", ("transformers", "auto_round"))
    # Products of codes and scales are rounded to float16.
    tolerance = 1e-2

    def own_refusal(self, point: QuantizationPoint, dtype: torch.dtype) -> str:
        """Layers of odd sizes, and scales that its kernels do not read."""
        if any(length % _MULTIPLE for length in point.shape):
            return f"layers whose inputs or outputs are no multiple of {_MULTIPLE}"
        if point.scale_format != "float16":
            return f"scales of {point.scale_format} (set placement.scale_dtype to 'float16')"
        return ""

    def quantization_config(self, weights: Mapping[str, StrippedWeight], model: nn.Module) -> dict[str, Any]:
        """The scheme of every linear layer by its exact name; of the first one for what has no name."""
        # Named also where they are as the first: heads, which lie outside the blocks, are read by name alone.
        own = {module: _scheme(weight) for module, weight in weights.items()}
        common = next(iter(own.values()))
        own |= {module: {"bits": _FLOAT_BITS, "data_type": "float"} for module in float_linears(model)}
        return {
            "quant_method": "auto-round",
            "packing_format": "auto_round",
            "data_type": "int",
            **common,
            "extra_config": own,
        }

    def tensors_of(self, weight: StrippedWeight) -> dict[str, Tensor]:
        """Packed codes, scales and packed zero points, each with the outputs last."""
        num_rows = weight.codes.shape[0]
        scale = weight.scale.detach().cpu().reshape(num_rows, -1)
        # The codes' zero: in the middle of a symmetric grid, which packing moves up to unsigned numbers.
        zero = torch.zeros(scale.shape, dtype=torch.int8)
        if weight.zero_point is not None:
            zero = weight.zero_point.detach().cpu().reshape(num_rows, -1)
        words = pack_rows(weight.codes.cpu().numpy(), weight.num_bits, weight.name)
        zeros = pack_rows(zero.T.contiguous().numpy(), weight.num_bits, weight.name)
        return {
            "qweight": torch.from_numpy(words).T.contiguous(),
            "scales": scale.T.contiguous().to(torch.float16),
            "qzeros": torch.from_numpy(zeros),
        }


def _scheme(weight: StrippedWeight) -> dict[str, Any]:
    # No groups are a single one, the whole row.
    size = weight.granularity.group_size or -1
    return {"bits": weight.num_bits, "group_size": size, "sym": weight.symmetric}
