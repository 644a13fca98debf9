"""Build a controller from a setup, calibrated ranges and an assignment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from raysearch.controller.adjacent import AdjacentGroups
from raysearch.controller.by_hand import NonWeightQuantizer, WeightQuantizer
from raysearch.controller.controller import Observer, QuantizationController
from raysearch.controller.initializer import Initializer
from raysearch.hooks.attach import attach_activation, attach_weight, check_weight
from raysearch.quantizer import Quantizer, make_quantizer
from raysearch.records import BitAssignment, QuantizerSetup, RangeTable
from raysearch.records.applicable import check_assignment


def create_controller(
    model: nn.Module,
    setup: QuantizerSetup,
    ranges: RangeTable,
    assignment: BitAssignment,
    *,
    config: Mapping[str, Any] | None = None,
    observer: Observer | None = None,
    initializer: Initializer | None = None,
    range_init_params: Mapping[str, Any] | None = None,
) -> QuantizationController:
    """Put fake-quantizers into `model`, in place, and hand over their controller.

    The model keeps its class and runs as before, quantized. This is the one place where a model changes.

    Args:
        model: the float model that the setup was made for; it is modified.
        setup: where quantizers go.
        ranges: calibrated ranges; one is needed for each quantizer at its assigned width.
        assignment: group id → bit-width. A group that it leaves out stays float: its quantizers are there
            but disabled.
        config: NNCF-style; its `params` make the schedule staged.
        observer: told of every change of the controller.
        initializer: finds ranges and widths for `init_range` and `init_precision`.
        range_init_params: settings that `init_range()` uses when it is given none.

    Raises:
        PlacementError: the setup belongs to another model, the model has quantizers already, a width is not
            allowed, or a range is missing. The model is as before.
    """
    check_assignment(setup, ranges, assignment)
    weights = setup.of_kind("weight")
    for point in weights.values():
        check_weight(model, point)
    activations = setup.of_kind("activation")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    quantizers: dict[str, Quantizer] = {name: make_quantizer(point) for name, point in setup.points.items()}
    attach_activation(model, setup, {name: quantizers[name] for name in activations})
    for name, point in weights.items():
        attach_weight(model, point, quantizers[name])
    for quantizer in quantizers.values():
        quantizer.to(device)
    weight_parts = {
        name: WeightQuantizer(quantizers[name], model.get_submodule(point.layer), point.sites)
        for name, point in weights.items()
    }
    activation_parts = {
        name: NonWeightQuantizer(quantizers[name], point.sites) for name, point in activations.items()
    }
    controller = QuantizationController(
        model,
        config,
        observer,
        weight_parts,
        activation_parts,
        AdjacentGroups.of(setup),
        {name: point.shape for name, point in setup.points.items()},
        build_time_range_init_params=range_init_params,
        setup=setup,
        ranges=ranges,
        initializer=initializer,
    )
    controller.apply(assignment)
    return controller
