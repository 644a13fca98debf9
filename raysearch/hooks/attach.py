"""Attach modules to an eager model at the sites of a setup.

Weights: `torch.nn.utils.parametrize`. Module inputs: a forward pre-hook. Functions: one tap at the root.
All of it is plain objects, no closures, so that `copy.deepcopy` gives an independent model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from raysearch.errors import PlacementError
from raysearch.hooks.call_taps import CallKey, CallTap, tap_calls
from raysearch.hooks.flat_weights import follow_parametrizations
from raysearch.hooks.locations import module_of, quantizer_location
from raysearch.records import QuantizationPoint, QuantizerSetup


class InputHook:
    """Forward pre-hook that passes a module's first argument through `module`."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(
        self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Replace the first positional argument, or `input` when it came by keyword."""
        if args:
            return (self.module(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "input": self.module(kwargs["input"])}


def attach_weight(model: nn.Module, point: QuantizationPoint, quantizer: nn.Module) -> None:
    """Parametrize every site of a weight by one quantizer.

    Args:
        model: the eager model; it is modified.
        point: the weight and its sites.
        quantizer: what the weight goes through.

    Raises:
        PlacementError: see `check_weight`; the model is as before.
    """
    check_weight(model, point)
    for site in point.sites:
        module = module_of(model, site)
        parametrize.register_parametrization(module, site.name, quantizer, unsafe=True)
        follow_parametrizations(module)


def replace_weight(model: nn.Module, point: QuantizationPoint, quantizer: nn.Module) -> None:
    """Put another quantizer in the place of the one that `attach_weight` put on.

    Args:
        model: the model that the weight was attached to; it is modified.
        point: the weight and its sites.
        quantizer: what the weight goes through from now on.
    """
    for site in point.sites:
        # Typed loosely: torch declares a ParametrizationList's members only at run time.
        steps: Any = module_of(model, site).parametrizations
        steps[site.name][0] = quantizer


def check_weight(model: nn.Module, point: QuantizationPoint) -> None:
    """Refuse a weight that the model lacks, has in another shape, or has parametrized already.

    Raises:
        PlacementError: names the weight and what to do.
    """
    for site in point.sites:
        module = module_of(model, site)
        if parametrize.is_parametrized(module, site.name):
            raise PlacementError(
                f"'{point.id}' is parametrized already; remove it first with "
                f"torch.nn.utils.parametrize.remove_parametrizations, or pass a fresh copy of the model."
            )
        parameter = module._parameters.get(site.name)
        if parameter is None or tuple(parameter.shape) != point.shape:
            what = "no such parameter" if parameter is None else f"one of shape {tuple(parameter.shape)}"
            raise PlacementError(
                f"the setup names the weight '{point.id}' of shape {point.shape}, but this "
                f"{type(model).__name__} has {what}: it was made for another model. Place the quantizers "
                f"anew."
            )


def attach_activation(
    model: nn.Module, setup: QuantizerSetup, modules: Mapping[str, nn.Module]
) -> list[RemovableHandle]:
    """Insert one module per activation point; they become submodules at the point's first site.

    Args:
        model: the eager model; it is modified.
        setup: its activation points.
        modules: id of each activation point → the module that the tensor goes through.

    Returns:
        Handles that take the hooks off again.

    Raises:
        PlacementError: the model lacks a module, or has quantizers already; it is as before.
    """
    _check_activations(model, setup)
    handles: list[RemovableHandle] = []
    taps: dict[CallKey, nn.Module] = {}
    for point in setup.of_kind("activation").values():
        module = modules[point.id]
        owner, name = quantizer_location(model, point.sites[0])
        owner.add_module(name, module)
        for site in point.sites:
            if site.role == "input":
                hook = InputHook(module)
                handles.append(module_of(model, site).register_forward_pre_hook(hook, with_kwargs=True))
            else:
                taps[site.module, site.name or "add", site.occurrence, site.argument] = module
    if taps:
        handles.extend(tap_calls(model, CallTap(taps)))
    return handles


def detach_all(model: nn.Module, setup: QuantizerSetup, handles: list[RemovableHandle]) -> None:
    """Take off what `attach_activation` put on: the hooks and the submodules.

    Args:
        model: the model that they were put on.
        setup: its activation points.
        handles: what `attach_activation` gave.
    """
    for handle in handles:
        handle.remove()
    for point in setup.of_kind("activation").values():
        delattr(*quantizer_location(model, point.sites[0]))


def _check_activations(model: nn.Module, setup: QuantizerSetup) -> None:
    for point in setup.of_kind("activation").values():
        for site in point.sites:
            module_of(model, site)
        owner, name = quantizer_location(model, point.sites[0])
        if hasattr(owner, name):
            raise PlacementError(
                f"'{point.id}' has a quantizer already: the model was quantized before. Pass a fresh copy of "
                f"the float model."
            )
