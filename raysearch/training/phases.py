"""Which parts of a quantized model act, learn and are drawn to their levels as training goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from raysearch.config import TrainingConfig
from raysearch.controller import QuantizationController
from raysearch.hooks import float_weight
from raysearch.quantizer import Quantizer
from raysearch.quantizer.blocks import spread
from raysearch.training.norms import batch_norms


@dataclass(frozen=True)
class TrainedWeight:
    """A float weight that is quantized and trained.

    Attributes:
        name: of its quantizer.
        weight: the parameter.
        quantizer: that it goes through.
    """

    name: str
    weight: Tensor
    quantizer: Quantizer


class Phases:
    """Changes a model at given shares of its training.

    Args:
        controller: of the model that is trained.
        settings: the shares.
    """

    def __init__(self, controller: QuantizationController, settings: TrainingConfig) -> None:
        self._settings = settings
        self._norms = batch_norms(controller.model)
        acting = [quantizer for quantizer in controller.all_quantizations.values() if quantizer.enabled]
        self._scales = [parameter for quantizer in acting for parameter, _ in quantizer.learned()]
        # Those that the assignment leaves float are not among them.
        self._activations = [quantizer for quantizer in acting if quantizer.kind == "activation"]
        self._dampened: list[TrainedWeight] = []
        if settings.dampening:
            self._dampened = trained_weights(controller)

    @staticmethod
    def leave_unused(settings: TrainingConfig) -> bool:
        """Whether there are steps in which some parameters get no gradient."""
        return settings.scale_freeze_after < 1 or settings.activations_after > 0

    def enter(self, share: float) -> None:
        """Prepare the model for a step.

        Args:
            share: of the training, done before the step.
        """
        settings = self._settings
        if share >= settings.batch_norm_freeze_after:
            for norm in self._norms:
                norm.eval()
        if share >= settings.scale_freeze_after:
            for scale in self._scales:
                scale.requires_grad_(False)
                scale.grad = None
        self._quantize_activations(share >= settings.activations_after)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """With every quantizer on, as the model is judged and stored."""
        before = [quantizer.enabled for quantizer in self._activations]
        self._quantize_activations(True)
        try:
            yield
        finally:
            for quantizer, enabled in zip(self._activations, before, strict=True):
                quantizer.enabled = enabled

    @torch.no_grad()
    def dampen(self, share: float, rate: float) -> None:
        """Draw weights to their levels, after a step: w ← w + min(1, 2·η·λ/s)·(ŵ − w).

        ŵ is the level that w rounds to, s its step, and λ rises to the setting as ½(1 − cos(π·share)). The
        size of a pull is, as that of Adam's step, in learning rates η. A weight beyond the ends of its grid
        is left alone: there is nothing between which it could swing.

        Args:
            share: of the training, done before the step.
            rate: η, of weights.

        Source: Nagel et al., Overcoming Oscillations in Quantization-Aware Training, ICML 2022, section 4.2,
        whose loss term this takes out of the gradient, as AdamW does with the decay of weights.
        """
        strength = 0.5 * self._settings.dampening * (1 - math.cos(math.pi * share))
        if not strength:
            return
        for own in self._dampened:
            weight, quantizer = own.weight, own.quantizer
            form = quantizer.affine()
            scale = spread(form.scale, weight.shape, form.granularity)
            zero = spread(form.zero_point, weight.shape, form.granularity)
            low, high = (form.quant_min - zero) * scale, (form.quant_max - zero) * scale
            if form.minimum is not None:
                minimum = spread(form.minimum, weight.shape, form.granularity)
                low, high = low - minimum, high - minimum
            distance = quantizer(weight) - torch.clamp(weight, low, high)
            weight += distance * (2 * strength * rate / scale).clamp_max(1)

    def _quantize_activations(self, enabled: bool) -> None:
        for quantizer in self._activations:
            quantizer.enabled = enabled


def trained_weights(controller: QuantizationController) -> list[TrainedWeight]:
    """The float weights that are quantized and trained."""
    weights: list[TrainedWeight] = []
    for name, point in controller.setup.of_kind("weight").items():
        quantizer = controller.all_quantizations[name]
        weight = float_weight(controller.model, point.sites[0])
        if quantizer.enabled and weight.requires_grad:
            weights.append(TrainedWeight(name, weight, quantizer))
    return weights
