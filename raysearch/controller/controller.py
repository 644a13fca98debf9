"""The QuantizationController: holds a model's quantizers, sets their widths, strips them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from raysearch.controller.stripped import strip
from raysearch.errors import PlacementError
from raysearch.quantizer import Quantizer
from raysearch.records import BitAssignment, CostModel, QuantizerSetup, RangeTable


class QuantizationController:
    """All quantizers of one model, keyed by quantizer id in graph order.

    Made by `create_controller`. `all_quantizations`, the enable and disable methods, `statistics` and
    `strip_model` mean what they meant in NNCF's controller of the same name.

    Attributes:
        model: the quantized model, modified in place.
        setup: where the quantizers are.
        all_quantizations: quantizer id → quantizer, weights first.
        assignment: the bit assignment in force.
    """

    def __init__(
        self,
        model: nn.Module,
        setup: QuantizerSetup,
        ranges: RangeTable,
        quantizers: Mapping[str, Quantizer],
    ) -> None:
        self.model = model
        self.setup = setup
        self.all_quantizations = dict(quantizers)
        self.assignment = BitAssignment({})
        self._ranges = ranges

    def apply(self, assignment: BitAssignment) -> None:
        """Set every width and its calibrated range; groups that are not named are disabled.

        Learned scales are overwritten by the calibrated ones.

        Raises:
            PlacementError: a group is unknown, the width is not one of its own, or its range is missing;
                nothing was changed.
        """
        check_assignment(self.setup, self._ranges, assignment)
        widths = assignment.per_point(self.setup)
        for name, quantizer in self.all_quantizations.items():
            quantizer.enabled = name in widths
            # A disabled scale gets no gradient, which DDP would wait for.
            quantizer.scale.requires_grad_(quantizer.enabled)
            if quantizer.enabled:
                quantizer.set_range(widths[name], self._ranges[name, widths[name]])
        self.assignment = assignment

    def enable_weight_quantization(self) -> None:
        """Let the weight quantizers of the assignment act."""
        self._switch("weight", True)

    def disable_weight_quantization(self) -> None:
        """Pass weights through unquantized."""
        self._switch("weight", False)

    def enable_activation_quantization(self) -> None:
        """Let the activation quantizers of the assignment act."""
        self._switch("activation", True)

    def disable_activation_quantization(self) -> None:
        """Pass activations through unquantized."""
        self._switch("activation", False)

    def statistics(self) -> dict[str, Any]:
        """Counts, bit histograms and the costs of the assignment in force.

        Returns:
            `num_weight_quantizers`, `num_activation_quantizers`, `num_enabled`,
            `weight_bit_widths` and `activation_bit_widths` (width → count of enabled quantizers), and
            `costs` as `CostModel.costs` gives them.
        """
        histograms: dict[str, dict[int, int]] = {"weight": {}, "activation": {}}
        for name, quantizer in self.all_quantizations.items():
            if quantizer.enabled:
                counts = histograms[self.setup.points[name].kind]
                counts[quantizer.num_bits] = counts.get(quantizer.num_bits, 0) + 1
        return {
            "num_weight_quantizers": len(self.setup.of_kind("weight")),
            "num_activation_quantizers": len(self.setup.of_kind("activation")),
            "num_enabled": sum(q.enabled for q in self.all_quantizations.values()),
            "weight_bit_widths": dict(sorted(histograms["weight"].items())),
            "activation_bit_widths": dict(sorted(histograms["activation"].items())),
            "costs": CostModel(self.setup).costs(self.assignment),
        }

    def strip_model(
        self,
        model: nn.Module | None = None,
        do_copy: bool = False,
        form: Literal["integer", "float"] = "integer",
    ) -> nn.Module:
        """Replace fake-quantizers by what they stand for; outputs in eval mode stay equal bit for bit.

        Args:
            model: the model to strip; default the controller's own. A wrapper of
                `DistributedDataParallel` or `torch.compile` is taken off.
            do_copy: strip a copy and leave the model trainable.
            form: "integer" keeps weights as int8 codes with float32 scales that are multiplied in the
                forward, no float weight left; "float" gives plain parameters on their grid, which pickle.

        Returns:
            The stripped module, in eval mode; activation quantizers are fixed.

        Raises:
            PlacementError: the model is not the one this controller was created for, or was stripped before.
        """
        wrapped = (getattr(model, name, None) for name in ("module", "_orig_mod"))
        if model is not None and self.model is not model and all(m is not self.model for m in wrapped):
            raise PlacementError(
                f"strip_model was given a {type(model).__name__} that this controller was not created for; "
                f"pass the model that create_controller changed, or none."
            )
        return strip(self.model, self.setup, do_copy=do_copy, form=form)

    def _switch(self, kind: str, enabled: bool) -> None:
        widths = self.assignment.per_point(self.setup)
        for name in widths:
            if self.setup.points[name].kind == kind:
                quantizer = self.all_quantizations[name]
                quantizer.enabled = enabled
                quantizer.scale.requires_grad_(enabled)


def check_assignment(setup: QuantizerSetup, ranges: RangeTable, assignment: BitAssignment) -> None:
    """Refuse an assignment that cannot be applied; groups may be left out.

    Raises:
        PlacementError: a group is unknown, a width is not one of its group's, or a range is missing.
    """
    for group, bits in assignment.bits.items():
        known = setup.groups.get(group)
        if known is None or bits not in known.bit_widths:
            allowed = (
                f"the model has no such group, `raysearch inspect` lists all {len(setup.groups)}"
                if known is None
                else f"allowed: {', '.join(map(str, known.bit_widths))}"
            )
            raise PlacementError(f"the assignment gives '{group}' {bits} bits; {allowed}.")
    for name, bits in assignment.per_point(setup).items():
        if (name, bits) not in ranges.ranges:
            raise PlacementError(f"there is no calibrated range for '{name}' at {bits} bits; calibrate anew.")
        size = ranges[name, bits].scale.size
        if size != setup.points[name].num_scales:
            raise PlacementError(
                f"the range of '{name}' at {bits} bits has {size} scales instead of "
                f"{setup.points[name].num_scales}: it was calibrated for another model; calibrate anew."
            )
