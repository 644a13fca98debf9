"""The controller's loss: zero, or distillation from the float model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from raysearch.errors import PlacementError, TrainingError
from raysearch.evaluation import Divergence, Objective, output_tensor
from raysearch.evaluation.forward import frozen_eval


class ZeroLoss:
    """A differentiable scalar 0 on the model's device."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self) -> Tensor:
        """The loss of the last forward."""
        device = next((p.device for p in self._model.parameters()), None)
        return torch.zeros((), device=device, requires_grad=True)

    def get_state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing is kept, so nothing is loaded."""

    def close(self) -> None:
        """Nothing to take off the model."""


class DistillationLoss(ZeroLoss):
    """weight·D(logits, teacher's) + feature_weight·mean over blocks of a relative squared error.

    A training forward of the model runs the teacher on the same inputs, without gradient and in eval mode.
    The error of a block is ‖f − f⁰‖² / ‖f⁰‖² of its output, so that blocks of any size count alike.

    Args:
        model: the quantized model.
        teacher: the float model; it is not changed.
        weight: of the logits' divergence.
        blocks: names of modules whose outputs are compared.
        feature_weight: of the blocks' error.
        divergence: how logits are compared.

    Raises:
        PlacementError: a block is no module of both models.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        *,
        weight: float = 1.0,
        blocks: Sequence[str] = (),
        feature_weight: float = 1.0,
        divergence: Objective | None = None,
    ) -> None:
        super().__init__(model)
        modules = dict(model.named_modules())
        teacher_modules = dict(teacher.named_modules())
        for name in blocks:
            if name not in modules or name not in teacher_modules:
                raise PlacementError(
                    f"the block '{name}' for distillation is no module of the model and its teacher."
                )
        self._teacher, self._blocks = teacher, tuple(blocks)
        self._weights = (weight, feature_weight)
        self._divergence = divergence or Divergence()
        self._value: Tensor | None = None
        self._features: dict[str, Tensor] = {}
        hooks = [modules[name].register_forward_hook(_Tap(self, name)) for name in blocks]
        self._hooks = [*hooks, model.register_forward_hook(_Tap(self, ""), with_kwargs=True)]

    def __call__(self) -> Tensor:
        """The loss of the last training forward.

        Raises:
            TrainingError: there was none.
        """
        if self._value is None:
            raise TrainingError(
                "the distillation loss has no value yet; run the model in training mode first."
            )
        return self._value

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def keep(self, name: str, output: Any) -> None:
        """Remember the output of a block in a training forward."""
        if self._model.training and torch.is_grad_enabled():
            self._features[name] = output_tensor(output)

    def compare(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Run the teacher on what the model has just run on.

        Args:
            args: positional arguments of the model's forward.
            kwargs: its keyword arguments.
            output: what the model gave.
        """
        if not (self._model.training and torch.is_grad_enabled()):
            return
        with _collected(self._teacher, self._blocks) as targets, frozen_eval(self._teacher), torch.no_grad():
            target = self._divergence.judged(self._teacher(*args, **kwargs))
        weight, feature_weight = self._weights
        judged = self._divergence.judged(output)
        value = weight * self._divergence.per_sample(judged, target).mean()
        for name, feature in targets.items():
            exact = feature.double()
            error = (self._features[name].double() - exact).square().sum()
            # A block whose output is 0 everywhere would divide by 0.
            size = exact.square().sum().clamp_min(1e-12)
            value = value + feature_weight / len(targets) * error / size
        self._features = {}
        self._value = value.to(output_tensor(output).dtype)


class _Tap:
    """A forward hook; a deep copy of the model gets one that does nothing."""

    def __init__(self, loss: DistillationLoss | None, name: str) -> None:
        self._loss, self._name = loss, name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        if self._loss is None:
            return
        if self._name:
            self._loss.keep(self._name, rest[-1])
        else:
            kwargs, output = rest
            self._loss.compare(args, kwargs, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Tap:
        return _Tap(None, self._name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Tap, (None, self._name)


@contextmanager
def _collected(teacher: nn.Module, blocks: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Outputs of a teacher's blocks, filled while it runs."""
    outputs: dict[str, Tensor] = {}

    def hook_of(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            outputs[name] = output_tensor(output)

        return hook

    handles = [teacher.get_submodule(name).register_forward_hook(hook_of(name)) for name in blocks]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
