"""Attach modules to an eager model at the sites of a setup.

Weights: `torch.nn.utils.parametrize`. Module inputs: a forward pre-hook. Additions: one tap at the root.
All of it is plain objects, no closures, so that `copy.deepcopy` gives an independent model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from raysearch.errors import PlacementError
from raysearch.placement.additions import AdditionKey, AdditionTap, tap_additions
from raysearch.records import QuantizationPoint, QuantizerSetup, Site


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

    Raises:
        PlacementError: the weight has another parametrization already.
    """
    for site in point.sites:
        module = _module(model, site)
        if parametrize.is_parametrized(module, site.name):
            raise PlacementError(
                f"'{point.id}' is parametrized already; remove it first with "
                f"torch.nn.utils.parametrize.remove_parametrizations."
            )
        parametrize.register_parametrization(module, site.name, quantizer, unsafe=True)


def attach_activation(
    model: nn.Module, setup: QuantizerSetup, modules: Mapping[str, nn.Module]
) -> list[RemovableHandle]:
    """Insert one module per activation point; they become submodules at the point's first site.

    Returns:
        Handles that take the hooks off again.
    """
    handles: list[RemovableHandle] = []
    taps: dict[AdditionKey, nn.Module] = {}
    owners: set[str] = set()
    for point in setup.of_kind("activation").values():
        module = modules[point.id]
        first = point.sites[0]
        _module(model, first).add_module(submodule_name(first), module)
        for site in point.sites:
            if site.role == "input":
                hook = InputHook(module)
                handles.append(_module(model, site).register_forward_pre_hook(hook, with_kwargs=True))
            else:
                taps[site.module, site.occurrence, site.argument] = module
                owners.add(site.module)
    if taps:
        handles.extend(tap_additions(model, owners, AdditionTap(taps)))
    return handles


def detach_all(model: nn.Module, setup: QuantizerSetup, handles: list[RemovableHandle]) -> None:
    """Take off what `attach_activation` put on: the hooks and the submodules."""
    for handle in handles:
        handle.remove()
    for point in setup.of_kind("activation").values():
        first = point.sites[0]
        delattr(_module(model, first), submodule_name(first))


def submodule_name(site: Site) -> str:
    """Name under which an activation's module is registered at its first site."""
    if site.role == "input":
        return "input_quantizer"
    return f"add{site.occurrence}_input{site.argument}_quantizer"


def _module(model: nn.Module, site: Site) -> nn.Module:
    try:
        return model.get_submodule(site.module)
    except AttributeError as error:
        raise PlacementError(
            f"the setup names the module '{site.module}', which this {type(model).__name__} lacks: it was "
            f"made for another model. Place the quantizers anew."
        ) from error
