"""Build a controller from a setup, calibrated ranges and an assignment."""

from __future__ import annotations

from torch import nn

from raysearch.controller.attach import attach_activation, attach_weight
from raysearch.controller.controller import QuantizationController
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
        PlacementError: the setup belongs to another model, or a width is not allowed.
    """
    quantizers: dict[str, Quantizer] = {}
    for point in setup.points.values():
        if point.kind == "weight":
            quantizer: Quantizer = SymmetricQuantizer(point.shape, point.axis, len(point.shape))
            attach_weight(model, point, quantizer)
        else:
            quantizer = AsymmetricQuantizer()
        quantizers[point.id] = quantizer
    activations = {p: q for p, q in quantizers.items() if setup.points[p].kind == "activation"}
    attach_activation(model, setup, activations)
    device = next((p.device for p in model.parameters()), None)
    if device is not None:
        for quantizer in quantizers.values():
            quantizer.to(device)
    controller = QuantizationController(model, setup, ranges, quantizers)
    controller.apply(assignment)
    return controller
