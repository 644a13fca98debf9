"""Whether the quantizers of a controller can be exported, and what keeps them from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from raysearch.quantizer import MAX_BITS, MIN_BITS, Quantizer


@dataclass(frozen=True)
class ExportReadiness:
    """Whether a controller can be exported, as `prepare_for_export` tells it.

    Attributes:
        frozen: quantizers whose ranges are fixed now.
        left_out: disabled quantizers; the exported model has none there.
        not_exportable: quantizer id → why.
    """

    frozen: tuple[str, ...]
    left_out: tuple[str, ...]
    not_exportable: Mapping[str, str]


def check_exportable(quantizers: Mapping[str, Quantizer]) -> ExportReadiness:
    """Freeze the ranges of enabled quantizers and look at widths and values."""
    problems: dict[str, str] = {}
    for name, quantizer in quantizers.items():
        quantizer.freeze()
        for parameter in quantizer.parameters():
            if quantizer.enabled and not bool(torch.isfinite(parameter).all()):
                problems[name] = "its range is not finite; calibrate anew or lower the learning rate"
        if quantizer.enabled and not MIN_BITS <= quantizer.num_bits <= MAX_BITS:
            problems[name] = f"its width {quantizer.num_bits} is outside {MIN_BITS}–{MAX_BITS}"
    enabled = tuple(name for name, quantizer in quantizers.items() if quantizer.enabled)
    left_out = tuple(name for name in quantizers if name not in enabled)
    return ExportReadiness(enabled, left_out, problems)
