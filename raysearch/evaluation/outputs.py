"""What a model returns, as named tensors; and a judged output as rows, one a sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from raysearch.evaluation.batches import map_tensors, tensors_of
from raysearch.evaluation.positions import Masked, values_of

Judged = Any
"""What is judged of a model's outputs: a tensor [N, …], or a tuple of such tensors where several count.

In place of a tensor stands a `Masked` where not all of its positions count.
"""

LONE_OUTPUT = "output"
"""What the only output of a model that returns a tensor is called."""

_CACHES = ("past_key_values", "past_key_value", "cache_params", "mems", "encoder_past_key_values")


def named_outputs(outputs: Any) -> dict[str, Tensor]:
    """Every floating-point tensor with a dimension and values, by its path: first `logits`, then as it comes.

    Tuples, lists, mappings, dataclasses and objects with `.logits` are looked through, nested ones too. A
    cache of keys and values is no output: it is there for the next call. A tensor that comes twice counts
    once.

    Example:
        >>> import torch
        >>> list(named_outputs({"hidden": [torch.ones(2)], "logits": torch.ones(2, 3)}))
        ['logits', 'hidden.0']
    """
    leaves: dict[str, Tensor] = {}
    known: set[int] = set()
    for name, tensor in _leaves(outputs, ""):
        if tensor.is_floating_point() and tensor.ndim and tensor.numel() and id(tensor) not in known:
            known.add(id(tensor))
            leaves[name] = tensor
    if "logits" in leaves:
        leaves = {"logits": leaves["logits"], **leaves}
    return leaves


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path or LONE_OUTPUT, value
        return
    for key, part in _parts(value):
        if key not in _CACHES:
            yield from _leaves(part, f"{path}.{key}" if path else key)


def _parts(value: Any) -> list[tuple[str, Any]]:
    """What an output is made of, by name; nothing of what is no container."""
    if isinstance(value, Mapping):
        return [(str(key), part) for key, part in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, tuple | list):
        return [(str(index), part) for index, part in enumerate(value)]
    if isinstance(value, type):
        return []
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if hasattr(value, "logits") and hasattr(value, "__dict__"):
        return list(vars(value).items())
    return []


def plain(outputs: Any) -> Any:
    """The same outputs as plain tuples, lists and dicts, which an exported graph can hold.

    Mappings, dataclasses and objects with `.logits` become dicts, named tuples become tuples; other values
    stay. A cache of keys and values is left out, as in `named_outputs`.
    """
    if isinstance(outputs, tuple):
        return tuple(plain(value) for value in outputs)
    if isinstance(outputs, list):
        return [plain(value) for value in outputs]
    parts = _parts(outputs)
    if parts or isinstance(outputs, Mapping):
        return {name: plain(value) for name, value in parts if name not in _CACHES}
    return outputs


def flat_rows(judged: Judged) -> Tensor:
    """A judged output as [N, …]: a tensor as it is, of several all values of a sample side by side."""
    if isinstance(judged, Tensor | Masked):
        return values_of(judged)
    return torch.cat([part.reshape(len(part), -1) for part in judged_tensors(judged)], 1)


def judged_tensors(judged: Judged) -> list[Tensor]:
    """The values of every judged output, without what says which of them count."""
    return [tensor for _, tensor in tensors_of(judged) if tensor.is_floating_point()]


def values_per_sample(judged: Judged) -> int:
    """How many values of one sample are judged."""
    return sum(tensor[0].numel() for tensor in judged_tensors(judged))


def num_bytes(judged: Judged) -> int:
    """What a judged output takes in memory."""
    return sum(tensor.nbytes for _, tensor in tensors_of(judged))


def difference(judged: Judged, reference: Judged) -> Judged:
    """One less the other, in float64 before the subtraction: at 8 bits the two are nearly equal."""
    exact = iter([tensor.double() for tensor in judged_tensors(reference)])

    def less(tensor: Tensor) -> Tensor:
        # Which positions count is the same in both.
        return tensor.double() - next(exact) if tensor.is_floating_point() else tensor

    return map_tensors(judged, less)
