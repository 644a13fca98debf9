"""What files are made of: a stripped module, and what it was stripped with."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from raysearch.controller import StrippedWeight, stripped_quantizers, stripped_weights
from raysearch.controller.stripped import Dequantize
from raysearch.evaluation.calls.model_calls import OpenDims
from raysearch.evaluation.half_precision import HALF, half_type, widened_batch
from raysearch.quantizer import Quantizer
from raysearch.records import BitAssignment, QuantizerSetup


@dataclass(frozen=True)
class StrippedModel:
    """A stripped module with its setup, its widths and an example of its inputs.

    Attributes:
        module: from `controller.strip_model(form="integer")`, on the CPU.
        setup: where its quantizers are.
        assignment: the widths it was stripped with.
        example_inputs: positional arguments of its forward; dimension 0 of each tensor is the batch.
        open_dims: dimensions besides the batch that stay open; see `find_call_form`.
    """

    module: nn.Module
    setup: QuantizerSetup
    assignment: BitAssignment
    example_inputs: tuple[Any, ...]
    open_dims: OpenDims = field(default_factory=dict)

    @cached_property
    def weights(self) -> dict[str, StrippedWeight]:
        """Its integer weights by quantizer id; weights that stay float are left out."""
        return stripped_weights(self.module, self.setup)

    @property
    def half_type(self) -> torch.dtype | None:
        """float16 or bfloat16, where the model computes in it."""
        of_weights = (weight.dtype for weight in self.weights.values() if weight.dtype in HALF)
        return next(of_weights, half_type(self.module))

    @cached_property
    def in_float32(self) -> StrippedModel:
        """The same model computing in float32, where it computes in half precision; else itself."""
        module = module_in_float32(self.module)
        if module is self.module:
            return self
        return replace(self, module=module, example_inputs=widened_batch(self.example_inputs))

    @cached_property
    def quantizers(self) -> dict[str, Quantizer]:
        """Its activation quantizers that are on, by id."""
        return stripped_quantizers(self.module, self.setup)


def module_in_float32(module: nn.Module) -> nn.Module:
    """A copy of a stripped module that computes in float32; itself where no weight is in half precision.

    Codes and scales stay, so its weights are the products that half precision rounds.
    """
    steps = [step for step in module.modules() if isinstance(step, Dequantize)]
    if not any(step.dtype in HALF for step in steps):
        return module
    widened = copy.deepcopy(module)
    for step in widened.modules():
        if isinstance(step, Dequantize) and step.dtype in HALF:
            step.dtype = torch.float32
    widened._apply(_widened)  # type: ignore[no-untyped-call]
    return widened


def _widened(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.dtype in HALF else value
