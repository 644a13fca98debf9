"""Outputs without the classes of the user's code: tensors in tuples, lists and dicts."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from raysearch.evaluation.outputs import plain


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
