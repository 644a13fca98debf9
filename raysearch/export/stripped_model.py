"""What files are made of: a stripped module, and what it was stripped with."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from raysearch.controller import StrippedWeight, stripped_quantizers, stripped_weights
from raysearch.evaluation.calls.model_calls import OpenDims
from raysearch.evaluation.half_precision import HALF, half_type
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
    def quantizers(self) -> dict[str, Quantizer]:
        """Its activation quantizers that are on, by id."""
        return stripped_quantizers(self.module, self.setup)
