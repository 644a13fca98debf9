"""Weights whose codes a rounding method chose: the float weights move to where those codes come out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from raysearch.hooks.locations import float_weight
from raysearch.quantizer import Quantizer, latent_weight
from raysearch.records import BitAssignment, QuantizerSetup, RangeTable


def place_latent_weights(
    model: nn.Module,
    setup: QuantizerSetup,
    ranges: RangeTable,
    quantizers: Mapping[str, Quantizer],
    assignment: BitAssignment,
) -> None:
    """Move float weights to where their quantizers, with their ranges in force, give the chosen codes.

    A weight whose range has no codes stays as it is. See `latent_weight`.

    Args:
        model: the model that holds the quantizers; its weights are changed in place.
        setup: where the weights are.
        ranges: the ranges in force, with the codes.
        quantizers: quantizer id → quantizer.
        assignment: the schemes in force.
    """
    schemes = assignment.per_point(setup)
    for name, point in setup.of_kind("weight").items():
        if name not in schemes:
            continue
        codes = ranges[name, schemes[name]].codes
        if codes is None:
            continue
        weight = float_weight(model, point.sites[0])
        with torch.no_grad():
            weight.copy_(latent_weight(weight, quantizers[name], codes))
