"""Weights behind a parametrization, a norm or a pruning mask, as plain parameters of a copy of the model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from raysearch.evaluation.model.copies import private_copy


def with_plain_weights(model: nn.Module) -> nn.Module:
    """The model with its computed weights as plain parameters that have their values.

    Those are the tensors of `torch.nn.utils.parametrize`, the older `weight_norm` and `spectral_norm`, and
    `prune`: a quantizer rounds what the layer reads, and what makes it would undo that. The names are told in
    a warning, since training changes the values themselves from there on.

    Returns:
        A copy, or the model itself where it has no such weight.
    """
    if not has_computed_weights(model):
        return model
    model = private_copy(model)
    make_plain_weights(model)
    return model


def has_computed_weights(model: nn.Module) -> bool:
    """Whether some weight is computed from others each time it is read."""
    return any(True for module in model.modules() for _ in _computed_of(module))


def make_plain_weights(model: nn.Module) -> None:
    """What `with_plain_weights` does, to the model itself."""
    if not has_computed_weights(model):
        return
    own_classes(model)
    names: list[str] = []
    for path, module in model.named_modules():
        for name, maker in list(_computed_of(module)):
            _make_plain(module, name)
            names.append(f"{path}.{name} ({maker})" if path else f"{name} ({maker})")
    warnings.warn(
        f"weights that are computed are taken as plain ones, whose values are quantized and trained as they "
        f"are: {', '.join(names)}.",
        stacklevel=3,
    )


def own_classes(model: nn.Module) -> None:
    """Give each parametrized module a class of its own.

    `copy.deepcopy` shares the class that parametrize injects; removing the parametrization from one of the
    two would take the property off the other as well.
    """
    for module in model.modules():
        if parametrize.is_parametrized(module):
            shared = type(module)
            body = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
            module.__class__ = type(shared.__name__, shared.__bases__, body)


def _computed_of(module: nn.Module) -> Iterator[tuple[str, str]]:
    """(name of the tensor, what computes it), of a module's own."""
    if parametrize.is_parametrized(module):
        for name, steps in _steps_of(module).items():
            yield name, ", ".join(type(step).__name__.lstrip("_") for step in steps)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm | SpectralNorm):
            yield hook.name, type(hook).__name__
        elif isinstance(hook, prune.BasePruningMethod):
            yield hook._tensor_name, type(hook).__name__


def _steps_of(module: nn.Module) -> Any:
    # Typed loosely: torch declares what a parametrization holds only at run time.
    return module.parametrizations


def _make_plain(module: nn.Module, name: str) -> None:
    if parametrize.is_parametrized(module, name):
        steps = _steps_of(module)[name]
        # A spectral norm takes a step of its power iteration whenever it is read in training.
        steps.eval()
        is_frozen = not any(parameter.requires_grad for parameter in steps.parameters())
        is_buffer = not any(key.startswith("original") for key in steps._parameters)
        with torch.no_grad():
            value = getattr(module, name).detach().clone()
        # torch cannot leave several originals as they are.
        parametrize.remove_parametrizations(module, name, leave_parametrized=not hasattr(steps, "original"))
        _replace(module, name, value if is_buffer else nn.Parameter(value, requires_grad=not is_frozen))
        return
    hooks = module._forward_pre_hooks.values()
    if any(isinstance(hook, WeightNorm) and hook.name == name for hook in hooks):
        remove_weight_norm(module, name)
    elif any(isinstance(hook, SpectralNorm) and hook.name == name for hook in hooks):
        remove_spectral_norm(module, name)
    else:
        prune.remove(module, name)  # type: ignore[no-untyped-call]


def _replace(module: nn.Module, name: str, value: Tensor) -> None:
    for tensors in (module.__dict__, module._parameters, module._buffers):
        tensors.pop(name, None)
    if isinstance(value, nn.Parameter):
        module.register_parameter(name, value)
    else:
        module.register_buffer(name, value)
