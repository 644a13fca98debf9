"""What a controller holds, counted: quantizers, widths, bytes, operations, edges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import nn

from raysearch.quantizer import Quantizer
from raysearch.records import (
    FLOAT_BITS,
    BitAssignment,
    CostModel,
    QuantizerSetup,
    compression_ratio,
    packed_bytes,
)


class Statistics(dict[str, Any]):
    """A mapping that prints as a table; nested mappings become indented rows."""

    def __str__(self) -> str:
        rows = list(_rows(self, ""))
        wide = max((len(name) for name, _ in rows), default=0)
        return "\n".join(f"{name:<{wide}}  {value}" for name, value in rows)

    def to_str(self) -> str:
        """The table, by NNCF's name."""
        return str(self)


def _rows(values: Mapping[Any, Any], indent: str) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows.append((f"{indent}{name}", "" if value else "-"))
            rows.extend(_rows(value, indent + "  "))
        else:
            rows.append((f"{indent}{name}", f"{value:.6g}" if isinstance(value, float) else str(value)))
    return rows


def count(
    quantizers: Mapping[str, Quantizer],
    setup: QuantizerSetup,
    assignment: BitAssignment,
    potential: Mapping[str, int],
) -> Statistics:
    """Counters, histograms and costs; walks no graph.

    Args:
        quantizers: quantizer id → quantizer.
        setup: where they are.
        assignment: the schemes in force.
        potential: "wq" and "aq", how many quantizers there could be; those of the setup where not given.
    """
    histograms: dict[str, dict[int, int]] = {"weight": {}, "activation": {}}
    counters = {kind: dict.fromkeys(_COUNTERS, 0) for kind in histograms}
    for name, quantizer in quantizers.items():
        kind = setup.points[name].kind
        counters[kind]["total"] += 1
        for trait in _traits(quantizer):
            counters[kind][trait] += 1
        if quantizer.enabled:
            bits = quantizer.num_bits
            histograms[kind][bits] = histograms[kind].get(bits, 0) + 1
    for kind, key in (("weight", "wq"), ("activation", "aq")):
        counters[kind]["potential"] = int(potential.get(key, counters[kind]["total"]))
    enabled = sum(q.enabled for q in quantizers.values())
    return Statistics(
        {
            "num_weight_quantizers": counters["weight"]["total"],
            "num_activation_quantizers": counters["activation"]["total"],
            "num_enabled": enabled,
            "ratio_of_enabled_quantizations": 100.0 * enabled / max(1, len(quantizers)),
            "weight_quantizers": counters["weight"],
            "activation_quantizers": counters["activation"],
            "weight_bit_widths": dict(sorted(histograms["weight"].items())),
            "activation_bit_widths": dict(sorted(histograms["activation"].items())),
            "weight_schemes": _count_schemes(quantizers, setup, assignment),
            "costs": CostModel(setup).costs(assignment),
            "compression_ratio": compression_ratio(setup, assignment),
        }
    )


def _count_schemes(
    quantizers: Mapping[str, Quantizer], setup: QuantizerSetup, assignment: BitAssignment
) -> dict[str, int]:
    """Scheme, as it is written → how many weights have it now."""
    schemes = assignment.per_point(setup)
    acting = Counter(
        scheme
        for name, scheme in schemes.items()
        if setup.points[name].kind == "weight" and quantizers[name].enabled
    )
    return {str(scheme): acting[scheme] for scheme in sorted(acting)}


_COUNTERS = (
    "symmetric",
    "asymmetric",
    "minimum",
    "signed",
    "unsigned",
    "per_tensor",
    "per_channel",
    "per_group",
    "total",
)


def _traits(quantizer: Quantizer) -> tuple[str, str, str]:
    return (
        quantizer.mode,
        "signed" if quantizer.signed else "unsigned",
        quantizer.granularity.kind,
    )


def memory(setup: QuantizerSetup, assignment: BitAssignment) -> dict[str, float]:
    """Bytes: of all weights, float and as stored, and of the largest activation of one sample."""
    bits = {name: scheme.num_bits for name, scheme in assignment.per_point(setup).items()}
    weights = setup.of_kind("weight").values()
    activations = setup.of_kind("activation").values()
    float_bytes = float(sum(packed_bytes(point, FLOAT_BITS) for point in weights))
    packed = float(CostModel(setup).weight_bytes(assignment))
    float_sizes = [4 * point.num_elements for point in activations]
    sizes = [point.num_elements * bits.get(point.id, FLOAT_BITS) / 8 for point in activations]
    return {
        "float_weight_bytes": float_bytes,
        "weight_bytes": packed,
        "weight_bytes_ratio": float_bytes / packed if packed else 1.0,
        "max_float_activation_bytes": float(max(float_sizes, default=0)),
        "max_activation_bytes": max(sizes, default=0.0),
    }


def quantized_edges(
    model: nn.Module, setup: QuantizerSetup, quantizers: Mapping[str, Quantizer]
) -> dict[str, float]:
    """Edges into quantizable operations, as the fused graph has them, and how many carry quantized values.

    An edge is one weight, or one tensor that an operation reads. The integer input of an embedding is none.
    A normalization that is fused with the layer before it adds no edge.

    Args:
        model: the quantized model.
        setup: where its quantizers are.
        quantizers: id → quantizer; a disabled one's edges are float.
    """
    total = quantized = 0
    reached: set[str] = set()
    for name, point in setup.points.items():
        total += len(point.sites)
        quantized += len(point.sites) * bool(quantizers[name].enabled)
        if point.kind == "activation":
            reached.update(site.module for site in point.sites if site.role == "input")
    for point in setup.of_kind("weight").values():
        for site in point.sites:
            is_table = isinstance(model.get_submodule(site.module), nn.Embedding)
            total += not point.input_point and site.module not in reached and not is_table
    return {"total": total, "quantized": quantized, "share_percent": 100.0 * quantized / max(1, total)}
