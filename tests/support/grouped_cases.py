"""Nets of `export_cases` whose weights have scales per group."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import torch
from torch import Tensor, nn

from raysearch.calibration import calibrate_model
from raysearch.config import PlacementConfig
from raysearch.controller import create_controller
from raysearch.placement import place_quantizers
from raysearch.records import BitAssignment, Granularity, QuantizationPoint, QuantizerSpec
from tests.support.export_cases import NETS, WIDTHS, Case, forward_all


class Rows(nn.Module):
    """Every kind of layer, with rows of 64 inputs and more."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 64)
        self.first = nn.Linear(64, 48)
        self.second = nn.Linear(48, 64, bias=False)
        self.conv = nn.Conv1d(64, 16, 3, groups=2)
        self.norm = nn.BatchNorm1d(16)
        self.up = nn.ConvTranspose1d(16, 8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.tanh(self.first(self.table(ids)))
        x = torch.tanh(self.second(x)).transpose(1, 2)
        return self.up(self.norm(self.conv(x)))


GROUPED_NETS = NETS | {"rows": (Rows, lambda n: (torch.randint(0, 20, (n, 6)),))}


def grouped(
    net: str, bits: int | None, group_size: int, asymmetric: bool = False, activations: bool = True
) -> Case:
    """A stripped net with groups of at most `group_size` inputs, a channel's kernel positions counted.

    Args:
        net: a name of `GROUPED_NETS`.
        bits: of every weight; None goes through all widths.
        group_size: weights whose rows hold no two groups keep a scale per channel.
        asymmetric: with zero points.
        activations: whether they are quantized.
    """
    torch.manual_seed(0)
    build, inputs = GROUPED_NETS[net]
    model = build().eval()
    example = inputs(4)
    widths = (8,) if activations else ()
    settings = PlacementConfig(weight_bit_widths=WIDTHS, activation_bit_widths=widths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        setup = place_quantizers(model, example, settings)
    points = {name: _with_groups(p, group_size, asymmetric) for name, p in setup.points.items()}
    setup = replace(setup, points=points)
    chosen: dict[str, int] = {}
    for group in setup.groups.values():
        width = 8
        if setup.group_kind(group.id) == "weight":
            width = bits or WIDTHS[len(chosen) % len(WIDTHS)]
        chosen[group.id] = width
    ranges = calibrate_model(model, setup, [example], forward=forward_all)
    assignment = BitAssignment(chosen)
    stripped = create_controller(model, setup, ranges, assignment).strip_model()
    return Case(stripped, setup, assignment, inputs, example)


def _with_groups(point: QuantizationPoint, group_size: int, asymmetric: bool) -> QuantizationPoint:
    if point.kind != "weight":
        return point
    axis = point.granularity.axis or 0
    group_axis = 1 - axis
    channels = point.shape[group_axis]
    positions = math.prod(point.shape[2:])
    sizes = [c for c in range(1, channels) if channels % c == 0 and c * positions <= group_size]
    granularity = point.granularity
    if sizes:
        granularity = Granularity(axis, group_axis, max(sizes))
    spec = point.spec
    if asymmetric:
        spec = QuantizerSpec("asymmetric")
    return replace(point, granularity=granularity, spec=spec)
