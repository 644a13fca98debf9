"""Activation quantizers of a private model, hooked in only while they act."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn
from torch.utils.hooks import RemovableHandle

from raysearch.hooks.attach import InputHook, attach_activation
from raysearch.hooks.call_taps import CallKey, CallTap, tap_calls
from raysearch.records import QuantizerSetup

_SWITCHING = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
"""Modules that compute by other kernels while no hook and no function mode can see them."""


class Wiring:
    """Puts the hooks of some activation quantizers on, and takes those of the others off.

    A quantizer that is off gives what it gets, so its hook costs time and nothing else; where functions are
    tapped, at every module and function. A forward in which one weight is quantized so runs without any. That
    gives the bits of the fully hooked model, unless the model itself asks whether it is watched.

    Args:
        model: a private copy of the float model; its quantizers become submodules, as in a controller.
        setup: the points.
        quantizers: id → module of every activation point.

    Raises:
        PlacementError: see `attach_activation`.

    Attributes:
        may_leave_out: whether hooks of quantizers that are off are taken off; set by who has seen that the
            fully hooked float model gives the bits of the bare one.
        is_watchful: whether the model is known to compute otherwise while it is watched.
    """

    def __init__(self, model: nn.Module, setup: QuantizerSetup, quantizers: Mapping[str, nn.Module]) -> None:
        self._model, self._quantizers = model, quantizers
        self._handles: list[RemovableHandle] = attach_activation(model, setup, quantizers)
        self._every = self._wired = frozenset(quantizers)
        self.may_leave_out = False
        self.is_watchful = any(isinstance(module, _SWITCHING) for module in model.modules())
        self._inputs: dict[str, list[nn.Module]] = {name: [] for name in quantizers}
        self._calls: dict[str, list[CallKey]] = {name: [] for name in quantizers}
        for name, point in setup.of_kind("activation").items():
            for site in point.sites:
                if site.role == "input":
                    self._inputs[name].append(model.get_submodule(site.module))
                else:
                    key = (site.module, site.name or "add", site.occurrence, site.argument)
                    self._calls[name].append(key)

    def wire_all(self) -> None:
        """Hook in every quantizer."""
        self._wire(self._every)

    def wire(self, acting: Iterable[str]) -> None:
        """Hook in those that act, in the order in which a controller does; all, unless `may_leave_out`."""
        self._wire(frozenset(acting) if self.may_leave_out else self._every)

    def _wire(self, names: frozenset[str]) -> None:
        if names == self._wired:
            return
        for handle in self._handles:
            handle.remove()
        self._wired = names
        taps: dict[CallKey, nn.Module] = {}
        self._handles = []
        for name in (name for name in self._quantizers if name in names):
            hook = InputHook(self._quantizers[name])
            for module in self._inputs[name]:
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            taps |= dict.fromkeys(self._calls[name], self._quantizers[name])
        if taps:
            self._handles.extend(tap_calls(self._model, CallTap(taps)))
