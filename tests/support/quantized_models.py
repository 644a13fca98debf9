"""Nets of the model zoo with their controllers, made without calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raysearch.config import PlacementConfig
from raysearch.controller import QuantizationController, create_controller
from raysearch.placement import place_quantizers
from raysearch.records import BitAssignment, QuantizerRange, QuantizerSetup, RangeTable
from tests.support import model_zoo

WIDTHS = (2, 3, 4, 5, 6, 7, 8)


def weight_ranges(weight: Tensor, axis: int | None, bits: int) -> np.ndarray:
    """Largest magnitude over the top level, a channel."""
    rows = weight.detach().reshape(1, -1) if axis is None else weight.detach().movedim(axis, 0).flatten(1)
    return (rows.abs().amax(1) / (2 ** (bits - 1) - 1)).clamp_min(1e-6).numpy().astype(np.float32)


def make_ranges(model: nn.Module, setup: QuantizerSetup) -> RangeTable:
    """Weights by their magnitude; activations cover about −3 … 3, with 0 on the grid.

    No two activations have one scale: a sum of two on one grid would be on it again, and teach its
    quantizer nothing.
    """
    values: dict[tuple[str, int], QuantizerRange] = {}
    for index, point in enumerate(setup.points.values()):
        for bits in WIDTHS:
            if point.kind == "weight":
                scale = weight_ranges(model.get_parameter(point.id), point.granularity.axis, bits)
                zero = np.zeros(len(scale), np.int32)
            else:
                scale = np.array([(6 + index / 10) / (2**bits - 1)], np.float32)
                zero = np.array([2 ** (bits - 1)], np.int32)
            values[point.id, bits] = QuantizerRange(scale, zero, point.kind == "weight")
    return RangeTable(values)


@dataclass
class Quantized:
    model: nn.Module
    controller: QuantizationController
    setup: QuantizerSetup
    ranges: RangeTable
    assignment: BitAssignment
    inputs: tuple[Any, ...]


def assign(setup: QuantizerSetup, bits: int | None) -> BitAssignment:
    """All groups at one width; None cycles through the widths."""
    return BitAssignment({g: bits or WIDTHS[i % len(WIDTHS)] for i, g in enumerate(setup.groups)})


@cache
def placed(name: str) -> QuantizerSetup:
    """The setup of a net of the model zoo, captured once; a record that its every copy shares."""
    model, example = model_zoo.build(name), model_zoo.inputs(name)
    return place_quantizers(
        model, example, PlacementConfig(weight_bit_widths=WIDTHS, activation_bit_widths=WIDTHS)
    )


def quantized(name: str, bits: int | None = 4, left_out: Sequence[str] = ()) -> Quantized:
    """A net of the model zoo with its controller, in eval mode; groups in `left_out` stay float."""
    model, example = model_zoo.build(name), model_zoo.inputs(name)
    setup = placed(name)
    ranges = make_ranges(model, setup)
    chosen = {g: b for g, b in assign(setup, bits).bits.items() if g not in left_out}
    controller = create_controller(model, setup, ranges, BitAssignment(chosen))
    return Quantized(model, controller, setup, ranges, BitAssignment(chosen), example)


def run(model: nn.Module, args: tuple[Any, ...]) -> Tensor:
    """The compared output, without gradient."""
    with torch.no_grad():
        return model_zoo.output(model(*args)).clone()
