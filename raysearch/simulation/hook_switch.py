"""Activation quantizers of a private model, hooked in only while they act."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn
from torch.utils.hooks import RemovableHandle

from raysearch.hooks.attach import InputHook, attach_activation
from raysearch.hooks.call_taps import CallKey, CallTap, tap_calls
from raysearch.records import QuantizerSetup

_CHANGES_KERNELS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
"""Modules that compute by other kernels while no hook and no function mode can see them."""


class HookSwitch:
    """Puts the hooks of some activation quantizers on, and takes those of the others off.

    A quantizer that is off returns its input, so its hook costs time and changes nothing; where functions are
    tapped, it costs time at every module and function. With the hooks off, a forward in which only one
    weight is quantized runs without any. That gives the bits of the fully hooked model, unless the model
    itself asks whether hooks are on it.

    Args:
        model: a private copy of the float model; its quantizers become submodules, as in a controller.
        setup: the points.
        quantizers: id → module of every activation point.

    Raises:
        PlacementError: see `attach_activation`.

    Attributes:
        may_unhook: whether hooks of quantizers that are off are taken off; set by the caller once the fully
            hooked float model was seen to give the bits of the bare one.
        reacts_to_hooks: whether the model is known to compute otherwise while hooks are on it.
    """

    def __init__(self, model: nn.Module, setup: QuantizerSetup, quantizers: Mapping[str, nn.Module]) -> None:
        self._model = model
        self._quantizers = quantizers
        self._handles: list[RemovableHandle] = attach_activation(model, setup, quantizers)
        self._all = frozenset(quantizers)
        self._hooked = self._all
        self.may_unhook = False
        self.reacts_to_hooks = any(isinstance(module, _CHANGES_KERNELS) for module in model.modules())
        self._inputs: dict[str, list[nn.Module]] = {name: [] for name in quantizers}
        self._calls: dict[str, list[CallKey]] = {name: [] for name in quantizers}
        for name, point in setup.of_kind("activation").items():
            for site in point.sites:
                if site.role == "input":
                    self._inputs[name].append(model.get_submodule(site.module))
                else:
                    key = (site.module, site.name or "add", site.occurrence, site.argument)
                    self._calls[name].append(key)

    def hook_all(self) -> None:
        """Hook in every quantizer."""
        self._hook(self._all)

    def hook(self, acting: Iterable[str]) -> None:
        """Hook in those that act, in the order in which a controller does; all, unless `may_unhook`."""
        self._hook(frozenset(acting) if self.may_unhook else self._all)

    def _hook(self, names: frozenset[str]) -> None:
        if names == self._hooked:
            return
        for handle in self._handles:
            handle.remove()
        self._hooked = names
        self._handles = []
        taps: dict[CallKey, nn.Module] = {}
        for name, quantizer in self._quantizers.items():
            if name not in names:
                continue
            hook = InputHook(quantizer)
            for module in self._inputs[name]:
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            taps |= dict.fromkeys(self._calls[name], quantizer)
        if taps:
            self._handles.extend(tap_calls(self._model, CallTap(taps)))
