"""Outputs without the classes of the user's code: tensors in tuples, lists and dicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor


class NamedOutputs(dict[str, Any]):
    """A dict of outputs that also answers to `outputs.logits` and `outputs[0]`, as model outputs often do."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the model has no output '{name}'; it has {', '.join(self)}") from None

    def __getitem__(self, key: str | int) -> Any:
        """The output of a name, or the one at a position."""
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


def plain(outputs: Any) -> Any:
    """The same outputs as plain tuples, lists and dicts, which an exported graph can hold.

    Mappings and dataclasses become dicts, named tuples become tuples; other values stay.
    """
    if isinstance(outputs, Mapping):
        return {str(name): plain(value) for name, value in outputs.items()}
    if isinstance(outputs, tuple):
        return tuple(plain(value) for value in outputs)
    if isinstance(outputs, list):
        return [plain(value) for value in outputs]
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        return {f.name: plain(getattr(outputs, f.name)) for f in dataclasses.fields(outputs)}
    return outputs


def tensor_leaves(outputs: Any) -> list[Tensor]:
    """Every tensor of some outputs, in order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    value = plain(outputs)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [leaf for entry in value for leaf in tensor_leaves(entry)]
    return []
