"""What a model's arguments look like: enough to make inputs of the same kind when there is no data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raysearch.placement.stored_tensors import TORCH_DTYPES

MAX_INPUT_ELEMENTS = 1 << 28

_TORCH_TYPES = {name: dtype for dtype, name in TORCH_DTYPES.items()}


@dataclass(frozen=True)
class InputSpec:
    """One argument of a model.

    Attributes:
        kind: "tensor", "tuple", "list", "dict" or "value".
        shape: of a tensor, as in the example.
        dtype: of a tensor, as safetensors names it.
        low: its smallest finite value in the example; 0 if there is none.
        high: its greatest.
        parts: what a container holds: (key, spec); keys of sequences are positions.
        value: None, a boolean, a number or a text that is passed as it is.
    """

    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    low: float = 0.0
    high: float = 0.0
    parts: tuple[tuple[str, InputSpec], ...] = ()
    value: bool | int | float | str | None = None

    def to_entry(self) -> dict[str, Any]:
        """The spec as JSON values; `input_spec_from` reads it back."""
        if self.kind == "tensor":
            return {"shape": list(self.shape), "dtype": self.dtype, "low": self.low, "high": self.high}
        if self.kind == "value":
            return {"value": self.value}
        if self.kind == "dict":
            return {"dict": {key: part.to_entry() for key, part in self.parts}}
        return {self.kind: [part.to_entry() for _, part in self.parts]}

    def draw(self, generator: torch.Generator) -> Any:
        """An argument of this kind: values uniform between `low` and `high`, integers with both ends."""
        if self.kind == "tensor":
            return self._tensor(generator)
        if self.kind == "value":
            return self.value
        drawn = {key: part.draw(generator) for key, part in self.parts}
        if self.kind == "dict":
            return drawn
        return tuple(drawn.values()) if self.kind == "tuple" else list(drawn.values())

    @property
    def num_elements(self) -> int:
        """Values in all its tensors."""
        own = math.prod(self.shape) if self.kind == "tensor" else 0
        return own + sum(part.num_elements for _, part in self.parts)

    def _tensor(self, generator: torch.Generator) -> Tensor:
        dtype = _TORCH_TYPES[self.dtype]
        if dtype.is_floating_point:
            values = torch.rand(self.shape, generator=generator) * (self.high - self.low) + self.low
            return values.to(dtype)
        drawn = torch.randint(int(self.low), int(self.high) + 1, self.shape, generator=generator)
        return drawn.to(dtype)


def input_spec(value: Any) -> InputSpec | None:
    """Describe an argument; None where it holds something that JSON cannot."""
    if isinstance(value, Tensor):
        if value.dtype not in TORCH_DTYPES or value.dtype.is_complex:
            return None
        finite = value.detach().double().reshape(-1)
        finite = finite[torch.isfinite(finite)]
        ends = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 0.0)
        return InputSpec("tensor", tuple(value.shape), TORCH_DTYPES[value.dtype], *ends)
    if value is None or isinstance(value, bool | int | float | str):
        return InputSpec("value", value=value)
    if type(value) not in (tuple, list) and not isinstance(value, Mapping):
        return None
    named = value.items() if isinstance(value, Mapping) else enumerate(value)
    parts = tuple((str(key), input_spec(part)) for key, part in named)
    described = tuple((key, part) for key, part in parts if part is not None)
    if len(described) < len(parts):
        return None
    kind = "dict" if isinstance(value, Mapping) else type(value).__name__
    return InputSpec(kind, parts=described)


def input_spec_from(entry: Mapping[str, Any]) -> InputSpec:
    """Read what `InputSpec.to_entry` gave.

    Raises:
        ValueError, KeyError, TypeError: the entry is damaged.
    """
    if "shape" in entry:
        spec = InputSpec("tensor", _sizes(entry["shape"]), entry["dtype"], entry["low"], entry["high"])
        bounds = all(type(end) in (int, float) and abs(end) < 2**62 for end in (spec.low, spec.high))
        if spec.dtype not in _TORCH_TYPES or not bounds or spec.low > spec.high:
            raise ValueError(f"{dict(entry)!r:.200} describes no tensor")
        return spec
    if "value" in entry:
        if not (entry["value"] is None or isinstance(entry["value"], bool | int | float | str)):
            raise ValueError(f"{entry!r:.200} is no plain value")
        return InputSpec("value", value=entry["value"])
    if "dict" in entry:
        return InputSpec("dict", parts=tuple((str(k), input_spec_from(e)) for k, e in entry["dict"].items()))
    kind = "tuple" if "tuple" in entry else "list"
    return InputSpec(kind, parts=tuple((str(i), input_spec_from(e)) for i, e in enumerate(entry[kind])))


def _sizes(values: Any) -> tuple[int, ...]:
    sizes = tuple(values)
    if len(sizes) > 16 or any(type(size) is not int or not 0 <= size < 1 << 31 for size in sizes):
        raise ValueError(f"{list(sizes)!r:.200} is no shape of an argument")
    if math.prod(sizes) > MAX_INPUT_ELEMENTS:
        raise ValueError(f"an argument of shape {list(sizes)} is larger than {MAX_INPUT_ELEMENTS} values")
    return sizes
