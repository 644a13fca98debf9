"""The compressed-tensors target: a Hugging Face directory that transformers and vLLM run."""

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
from raysearch.records import Granularity, QuantizationPoint

_FORMAT = "pack-quantized"
_SCALE_FORMATS = {torch.float16: ("float16",), torch.bfloat16: ("bfloat16",)}
"""Type of a weight → formats of scales that survive being read in it; of float32 any does."""


class CompressedTensorsTarget(PretrainedTarget):
    """A directory in the format `pack-quantized`: symmetric codes of 2 to 8 bits, a scheme a module.

    Each weight is `weight_packed`, a little-endian stream along the inputs whose rows are whole 32-bit words,
    with `weight_scale` in the type of the model and `weight_shape`. Widths of 3, 5, 6 and 7 bits are read by
    compressed-tensors from 0.18 on. transformers decodes the weights at the first forward: its memory is that
    of the float model.
    """

    name = "compressed-tensors"
    folder = "compressed-tensors"
    files = ("compressed-tensors/config.json", "compressed-tensors/model.safetensors")
    capability = Capability(
        {width: width for width in EVERY_WIDTH},
        activations=(),
        weight_modes=("symmetric",),
        weight_granularity=("per_channel", "per_group"),
    )
    extra = Extra("compressed-tensors", ("transformers", "compressed_tensors"))
    # The other process multiplies the same values; kernels may sum in another order there.
    tolerance = 1e-3

    def own_refusal(self, point: QuantizationPoint, dtype: torch.dtype) -> str:
        """Scales that a model of the weight's type would round."""
        if point.scale_format not in _SCALE_FORMATS.get(dtype, (point.scale_format,)):
            own = str(dtype).removeprefix("torch.")
            return f"scales of {point.scale_format} in a {own} model (set placement.scale_dtype to 'model')"
        return ""

    def quantization_config(self, weights: Mapping[str, StrippedWeight], model: nn.Module) -> dict[str, Any]:
        """A group for each width and granularity, with the exact names of its modules."""
        targets: dict[tuple[int, Granularity], list[str]] = {}
        for module, weight in weights.items():
            targets.setdefault((weight.num_bits, weight.granularity), []).append(module)
        groups = {
            f"group_{index}": _group(names, num_bits, granularity)
            for index, ((num_bits, granularity), names) in enumerate(targets.items())
        }
        return {
            "quant_method": "compressed-tensors",
            "format": _FORMAT,
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": float_linears(model),
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }

    def tensors_of(self, weight: StrippedWeight) -> dict[str, Tensor]:
        """Packed codes, scales in the type of the weight, and the shape."""
        words = pack_rows(weight.codes.cpu().numpy(), weight.num_bits, weight.name)
        num_rows = weight.codes.shape[0]
        return {
            "weight_packed": torch.from_numpy(words),
            "weight_scale": weight.scale.detach().cpu().reshape(num_rows, -1).to(weight.dtype),
            "weight_shape": torch.tensor(weight.codes.shape),
        }


def _group(targets: list[str], num_bits: int, granularity: Granularity) -> dict[str, Any]:
    return {
        "targets": targets,
        "weights": {
            "num_bits": num_bits,
            "type": "int",
            "symmetric": True,
            "strategy": "channel" if granularity.group_size is None else "group",
            "group_size": granularity.group_size,
            "dynamic": False,
        },
        "input_activations": None,
        "output_activations": None,
        "format": _FORMAT,
    }
