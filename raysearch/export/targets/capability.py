"""What a file of a target can hold: widths, kinds of grids and granularity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raysearch.quantizer import MAX_BITS, MIN_BITS
from raysearch.records import QuantizationPoint, QuantizerSetup, Scheme

EVERY_WIDTH = tuple(range(MIN_BITS, MAX_BITS + 1))

EVERY_MODE = ("symmetric", "asymmetric", "minimum")

PROJECTION = "the projection of an LSTM (proj_size)"


@dataclass(frozen=True)
class Capability:
    """What a file of one target can hold; that it holds a width does not mean that it computes faster by it.

    Attributes:
        weights: widths of weights, each with the bits that a code takes in the file. Small tensors may take
            more where decoding them would cost more bytes than it saves.
        activations: widths of activations, none where they stay float; at run time their codes have 8 bits.
        weight_modes: kinds of weight grids.
        weight_granularity: scales of weights.
        holds_projections: whether an LSTM may have a projection, which ONNX's operator lacks.
        block_types: types of GGUF that weights have to be, by name; None: any scheme will do.
        dtypes: types of parameters and buffers that it stores, by safetensors' names; None is all.

    Example:
        >>> from raysearch.records import Granularity
        >>> point = QuantizationPoint("fc.weight", "weight", (), (2, 2), Granularity.per_channel(0))
        >>> Capability({8: 8}).refusal(point, (2, 8))
        '2 bits (it holds 8)'
    """

    weights: Mapping[int, int]
    activations: tuple[int, ...] = EVERY_WIDTH
    weight_modes: tuple[str, ...] = ("symmetric", "asymmetric")
    weight_granularity: tuple[str, ...] = ("per_channel", "per_tensor", "per_group")
    holds_projections: bool = True
    block_types: tuple[str, ...] | None = None
    dtypes: tuple[str, ...] | None = None

    def refusal(self, point: QuantizationPoint, widths: Sequence[int]) -> str:
        """What of a quantizer it does not hold, as words; "" when it holds all."""
        allowed = tuple(self.weights) if point.kind == "weight" else self.activations
        if not allowed and widths:
            return f"quantized {'weights' if point.kind == 'weight' else 'activations'}"
        if beyond := [str(width) for width in widths if width not in allowed]:
            return f"{', '.join(beyond)} bits (it holds {', '.join(map(str, allowed))})"
        if point.kind != "weight":
            return ""
        mode = point.grid_spec.mode
        if mode not in self.weight_modes:
            words = "weights with minima" if mode == "minimum" else f"{mode} weights"
            return f"{words} (it holds {', '.join(self.weight_modes)})"
        granularity = point.granularity.kind
        if granularity not in self.weight_granularity:
            return f"{granularity} scales (it holds {', '.join(self.weight_granularity)})"
        return ""

    def refusals(self, setup: QuantizerSetup) -> dict[str, list[str]]:
        """What of a setup it does not hold: words → the quantizers or tensors they are said of."""
        refused: dict[str, list[str]] = {}
        for tensor in setup.stored or ():
            if self.dtypes is not None and tensor.dtype not in self.dtypes:
                words = f"tensors of type {tensor.dtype} (it holds {', '.join(self.dtypes)})"
                refused.setdefault(words, []).append(tensor.name)
        for group in setup.groups.values():
            for name in group.points:
                effective = [setup.points[name].at(scheme) for scheme in group.schemes]
                statements = [self.refusal(point, group.bit_widths) for point in effective]
                statements += map(self._type_refusal, effective, group.schemes)
                for words in dict.fromkeys(filter(None, statements)):
                    refused.setdefault(words, []).append(name)
        if not self.holds_projections and (projections := projections_of(setup)):
            refused[PROJECTION] = projections
        return refused

    def _type_refusal(self, point: QuantizationPoint, scheme: Scheme) -> str:
        """Why a weight's scheme is no type that it holds, as words; "" when it is one."""
        if self.block_types is None or point.kind != "weight":
            return ""
        block_type = point.block_type(scheme.num_bits)
        if block_type is not None and block_type.name in self.block_types:
            return ""
        return f"{scheme.in_words} (it holds {', '.join(self.block_types)} of rows that they divide)"


def projections_of(setup: QuantizerSetup) -> list[str]:
    """Weights by which an LSTM projects its states, quantized or not."""
    floating = () if setup.coverage is None else setup.coverage.floating
    names = [*setup.of_kind("weight"), *(weight.name for weight in floating)]
    return [name for name in names if name.rpartition(".")[2].startswith("weight_hr_l")]
