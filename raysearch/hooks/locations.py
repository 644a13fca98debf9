"""Where quantizers and the float weights below them are in the eager model."""

from __future__ import annotations

from typing import Any

from torch import nn

from raysearch.errors import PlacementError
from raysearch.records import Site

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def quantizer_location(model: nn.Module, site: Site) -> tuple[nn.Module, str]:
    """Where an activation's module is registered, by its first site: the owner and the name there.

    Raises:
        PlacementError: the model lacks the site's module.
    """
    owner = module_of(model, site)
    if site.role == "input":
        return owner, "input_quantizer"
    name = f"{site.name or 'add'}{site.occurrence}_input{site.argument}_quantizer"
    if isinstance(owner, _CONTAINERS):
        # A container runs or counts whatever is registered on it, so its first layer takes the module in.
        layers = (module for module in owner.modules() if not isinstance(module, _CONTAINERS))
        owner = next(layers, owner)
        name = f"{site.module.replace('.', '_') or 'root'}_{name}"
    return owner, name


def float_weight(model: nn.Module, site: Site) -> nn.Parameter:
    """The float weight that a weight quantizer at a site reads; what training changes.

    Raises:
        PlacementError: the model lacks the site's module.
    """
    # Typed loosely: torch declares a ParametrizationList's `original` only at run time.
    parametrizations: Any = module_of(model, site).parametrizations
    weight: nn.Parameter = parametrizations[site.name].original
    return weight


def module_of(model: nn.Module, site: Site) -> nn.Module:
    """The module that a site names.

    Raises:
        PlacementError: the model lacks it.
    """
    try:
        return model.get_submodule(site.module)
    except AttributeError as error:
        raise PlacementError(
            f"the setup names the module '{site.module}', which this {type(model).__name__} lacks: it was "
            f"made for another model. Place the quantizers anew."
        ) from error
