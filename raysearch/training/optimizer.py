"""AdamW over weights, biases and norms, and over the quantizers' scales, each at a rate of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raysearch.config import TrainingConfig
from raysearch.controller import QuantizationController
from raysearch.errors import StorageError

BETAS = (0.9, 0.999)
EPSILON = 1e-8
"""As torch's AdamW has them."""

Moments = dict[str, Any]
"""What Adam keeps of a parameter, under torch's names: "step", "exp_avg", "exp_avg_sq"."""


class ScaleAdam:
    """Adam with a learning rate a parameter, in few operations over all of them.

    The numbers are those of `torch.optim.AdamW` with one group a parameter.

    Args:
        scales: the parameters.
        rates: their learning rates.

    Attributes:
        factor: what all rates are multiplied with.
        state: parameter → its moments, once it had a gradient.
    """

    def __init__(self, scales: Sequence[Tensor], rates: Sequence[float]) -> None:
        self._pairs = list(zip(scales, rates, strict=True))
        self.factor = 1.0
        self.state: dict[Tensor, Moments] = {}

    @torch.no_grad()
    def step(self) -> None:
        """One step of every scale that has a gradient."""
        scales: list[Tensor] = []
        gradients: list[Tensor] = []
        rates: list[float] = []
        roots: list[float] = []
        for scale, rate in self._pairs:
            if scale.grad is None:
                continue
            state = self.state.get(scale) or self._begin(scale)
            state["step"] += 1
            count = int(state["step"])
            scales.append(scale)
            gradients.append(scale.grad)
            rates.append(-(rate * self.factor) / (1 - BETAS[0] ** count))
            roots.append((1 - BETAS[1] ** count) ** 0.5)
        if not scales:
            return
        means = [self.state[scale]["exp_avg"] for scale in scales]
        squares = [self.state[scale]["exp_avg_sq"] for scale in scales]
        torch._foreach_lerp_(means, gradients, 1 - BETAS[0])
        torch._foreach_mul_(squares, BETAS[1])
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - BETAS[1])
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_div_(denominators, roots)
        torch._foreach_add_(denominators, EPSILON)
        torch._foreach_addcdiv_(scales, means, denominators, rates)

    def _begin(self, scale: Tensor) -> Moments:
        zeros = {"exp_avg": torch.zeros_like(scale), "exp_avg_sq": torch.zeros_like(scale)}
        self.state[scale] = {"step": torch.zeros(()), **zeros}
        return self.state[scale]


class Optimizer:
    """AdamW over weights (decayed), biases and norms (not decayed), and each learned scale by itself.

    Args:
        controller: of the model that is trained.
        settings: the learning rates and the decay.
    """

    def __init__(self, controller: QuantizationController, settings: TrainingConfig) -> None:
        # Parameter of a quantizer and its size, by which its learning rate is scaled.
        scales: list[tuple[Tensor, float]] = []
        for quantizer in controller.all_quantizations.values():
            if quantizer.enabled:
                scales.extend(quantizer.learned())
        scale_ids = {id(parameter) for parameter, _ in scales}
        self._named = dict(controller.model.named_parameters())
        decayed: list[Tensor] = []
        plain: list[Tensor] = []
        for parameter in self._named.values():
            if parameter.requires_grad and id(parameter) not in scale_ids:
                (decayed if parameter.ndim > 1 else plain).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self._rate = settings.learning_rate
        self._weights = torch.optim.AdamW(groups, lr=self._rate, betas=BETAS, eps=EPSILON) if groups else None
        # Adam's step has the size of the learning rate whatever the gradient's, so each scale gets a rate in
        # proportion to itself; otherwise small scales would jump by more than their own size.
        learned = [(scale, size) for scale, size in scales if scale.requires_grad]
        rates = [settings.scale_learning_rate * size for _, size in learned]
        self._scales = ScaleAdam([scale for scale, _ in learned], rates)
        self.parameters = [*decayed, *plain, *(scale for scale, _ in learned)]

    @property
    def learning_rate(self) -> float:
        """Of weights, as it is now."""
        return self._rate * self._scales.factor

    def set_factor(self, factor: float) -> None:
        """Multiply every learning rate, as it was at the start, with a factor."""
        self._scales.factor = factor
        if self._weights is not None:
            for group in self._weights.param_groups:
                group["lr"] = self._rate * factor

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        """One step of everything that has a gradient."""
        if self._weights is not None:
            self._weights.step()
        self._scales.step()

    def tensors(self) -> dict[str, Tensor]:
        """Its state, as "parameter|moment" → tensor."""
        moments = self._moments()
        named: dict[str, Tensor] = {}
        for name, parameter in self._named.items():
            for key, value in moments.get(parameter, {}).items():
                named[f"{name}|{key}"] = value
        return named

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave.

        Raises:
            StorageError: the state is of another setup; names the parameter.
        """
        trained = {id(parameter) for parameter in self.parameters}
        for name, value in tensors.items():
            parameter_name, _, key = name.rpartition("|")
            parameter = self._named.get(parameter_name)
            is_known = parameter is not None and id(parameter) in trained
            if parameter is None or not is_known or (key != "step" and value.shape != parameter.shape):
                raise StorageError(
                    f"the optimizer's state does not fit this model: it has '{name}' of shape "
                    f"{tuple(value.shape)}. It belongs to another setup; start a new run."
                )
            # torch keeps the count of steps on the CPU.
            device = "cpu" if key == "step" else parameter.device
            self._state_of(parameter)[key] = value.to(device, copy=True)

    def _moments(self) -> dict[Tensor, Moments]:
        weights = {} if self._weights is None else self._weights.state
        return {**weights, **self._scales.state}

    def _state_of(self, parameter: Tensor) -> Moments:
        scales = {id(scale) for scale, _ in self._scales._pairs}
        if id(parameter) in scales or self._weights is None:
            return self._scales.state.setdefault(parameter, {})
        state: Moments = self._weights.state[parameter]
        return state
