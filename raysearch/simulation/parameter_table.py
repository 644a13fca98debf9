"""A module's parameters, where a read of one is noticed and may be answered by another tensor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class ParameterTable(dict[str, nn.Parameter | None]):
    """What a module's `_parameters` are replaced by: torch looks a parameter up here whenever it is read.

    Put into a private model for good. Whoever lists the parameters sees those that the module was made with.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module._parameters)
        self._watchers: dict[str, Callable[[], None]] = {}
        self._makers: dict[str, Callable[[], nn.Parameter]] = {}

    @classmethod
    def of(cls, module: nn.Module) -> ParameterTable:
        """The table of a module, put in when first asked for."""
        table = module._parameters
        if not isinstance(table, cls):
            table = cls(module)
            module.__dict__["_parameters"] = table
        return table

    def watch(self, key: str, watcher: Callable[[], None]) -> None:
        """Have a function called whenever a parameter is read, however it is used then."""
        self._watchers[key] = watcher

    def answer(self, key: str, maker: Callable[[], nn.Parameter] | None) -> None:
        """Answer reads of a parameter by what a function gives; None: by the parameter itself."""
        if maker is None:
            self._makers.pop(key, None)
        else:
            self._makers[key] = maker

    def __getitem__(self, key: str) -> nn.Parameter | None:
        if key in self._watchers:
            self._watchers[key]()
        if key not in self._makers:
            return super().__getitem__(key)
        # What makes a weight is no part of the model's forward: no function mode may see it.
        with torch._C.DisableTorchFunction(), torch.inference_mode(False):
            return self._makers[key]()
