"""Build a controller from a setup, calibrated ranges and an assignment."""

from __future__ import annotations

from torch import nn

from raysearch.controller.attach import attach_activation, attach_weight, check_weight
from raysearch.controller.controller import QuantizationController, check_assignment
from raysearch.quantizer import AsymmetricQuantizer, Quantizer, SymmetricQuantizer
from raysearch.records import BitAssignment, QuantizerSetup, RangeTable


def create_controller(
    model: nn.Module, setup: QuantizerSetup, ranges: RangeTable, assignment: BitAssignment
) -> QuantizationController:
    """Put fake-quantizers into `model`, in place, and hand over their controller.

    The model keeps its class and runs as before, quantized. This is the one place where a model changes.

    Args:
        model: the float model that the setup was made for; it is modified.
        setup: where quantizers go.
        ranges: calibrated ranges; one is needed for each quantizer at its assigned width.
        assignment: group id → bit-width. A group that it leaves out stays float: its quantizers are there
            but disabled.

    Raises:
        PlacementError: the setup belongs to another model, the model has quantizers already, a width is not
            allowed, or a range is missing. The model is as before.
    """
    check_assignment(setup, ranges, assignment)
    weights = setup.of_kind("weight")
    for point in weights.values():
        check_weight(model, point)
    quantizers: dict[str, Quantizer] = {
        name: SymmetricQuantizer(point.shape, point.axis, len(point.shape))
        if point.kind == "weight"
        else AsymmetricQuantizer()
        for name, point in setup.points.items()
    }
    attach_activation(model, setup, {name: quantizers[name] for name in setup.of_kind("activation")})
    for name, point in weights.items():
        attach_weight(model, point, quantizers[name])
    device = next((p.device for p in model.parameters()), None)
    if device is not None:
        for quantizer in quantizers.values():
            quantizer.to(device)
    controller = QuantizationController(model, setup, ranges, quantizers)
    controller.apply(assignment)
    return controller
