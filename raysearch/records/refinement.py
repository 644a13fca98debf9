"""What became of the chosen assignment's scales, codes, norms and biases after the search."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save
from typing_extensions import TypedDict

from raysearch.errors import PlacementError, StorageError
from raysearch.records.ranges import (
    QuantizerRange,
    RangeTable,
    check_codes,
    stored_minimum,
    stored_range,
)
from raysearch.records.scheme import Scheme
from raysearch.records.typed_json import Count, read_json
from raysearch.records.typed_tables import checked_array

PLAIN = "plain"
"""The candidate by which the rounding table goes as it is."""

_INFO, _RANGE, _FLOAT = "info", "range", "float"


@dataclass(frozen=True, eq=False)
class Candidate:
    """A state of the quantized model that may be deployed: what differs from the tables of the run.

    Attributes:
        name: what was done.
        ranges: (quantizer id, scheme) → scale, zero point and codes.
        floats: name in the float model's state dict → value, of norms' parameters and biases.
    """

    name: str
    ranges: Mapping[tuple[str, Scheme], QuantizerRange] = field(default_factory=dict)
    floats: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def put_into(self, table: RangeTable) -> RangeTable:
        """A table with these scales, zero points and codes in force."""
        rounded = {key: value for key, value in self.ranges.items() if value.codes is not None}
        others = {key: value for key, value in self.ranges.items() if value.codes is None}
        return replace(table, ranges={**table.ranges, **others}, rounded={**table.rounded, **rounded})


@dataclass(frozen=True, eq=False)
class Refinement:
    """The best candidate on the validation data, and what it was compared with.

    Attributes:
        best: the candidate that is deployed, and that training starts from.
        divergences: every candidate's name → its mean divergence from the float model, in the order tried.
        errors: the same → standard error over samples of its difference from the plain one.
        num_samples: samples that they were measured on.
    """

    best: Candidate
    divergences: Mapping[str, float]
    errors: Mapping[str, float]
    num_samples: int

    def put_into(self, table: RangeTable) -> RangeTable:
        """The ranges of the model that is deployed."""
        return self.best.put_into(table)

    def describe(self) -> str:
        """One line for people."""
        values = ", ".join(f"{name} {value:.3g}" for name, value in self.divergences.items())
        chosen = f"'{self.best.name}' is kept"
        if self.best.name == PLAIN:
            chosen = "none improved on the plain codes, which are kept"
        return f"Refinement on {self.num_samples} validation samples, divergence: {values}; {chosen}."

    def digest(self) -> str:
        """A short hash of everything in it."""
        return blake2b(self.to_bytes(), digest_size=8).hexdigest()

    def to_bytes(self) -> bytes:
        """The record in the safetensors format; `from_bytes` reads it back.

        Keys are "range|id|scheme|scale", "…|zero_point", "…|codes", "…|minimum" and "float|name"; "info" is a
        JSON text of the rest.
        """
        tensors: dict[str, np.ndarray] = {}
        signs: dict[str, bool] = {}
        for (point, scheme), value in self.best.ranges.items():
            name = f"{_RANGE}|{point}|{scheme}"
            signs[name] = bool(value.signed)
            tensors[f"{name}|scale"] = np.asarray(value.scale, order="C")
            tensors[f"{name}|zero_point"] = np.asarray(value.zero_point, order="C")
            if value.codes is not None:
                tensors[f"{name}|codes"] = np.asarray(value.codes, order="C")
            if value.minimum is not None:
                tensors[f"{name}|minimum"] = np.asarray(value.minimum, order="C")
        for name, array in self.best.floats.items():
            tensors[f"{_FLOAT}|{name}"] = np.asarray(array, order="C")
        info = {
            "name": self.best.name,
            "signed": signs,
            "divergences": dict(self.divergences),
            "errors": dict(self.errors),
            "num_samples": self.num_samples,
        }
        tensors[_INFO] = np.frombuffer(json.dumps(info).encode(), np.uint8)
        return bytes(save(tensors))

    @classmethod
    def from_bytes(cls, data: bytes) -> Refinement:
        """Read what `to_bytes` wrote.

        Raises:
            StorageError: the bytes are no refinement.
        """
        try:
            tensors = load(data)
            text = checked_array(tensors, _INFO, (np.uint8,), 1).tobytes()
            info = read_json(_InfoForm, text, "its info")
            ranges = {}
            for name, signed in info["signed"].items():
                point, _, scheme = name.removeprefix(f"{_RANGE}|").rpartition("|")
                ranges[point, Scheme.of(scheme)] = _range_from(tensors, name, signed)
            prefix = f"{_FLOAT}|"
            floats = {
                key.removeprefix(prefix): tensors[key] for key in sorted(tensors) if key.startswith(prefix)
            }
            best = Candidate(info["name"], ranges, floats)
            return cls(best, info["divergences"], info["errors"], info["num_samples"])
        except (SafetensorError, PlacementError, StorageError, ValueError) as error:
            raise StorageError(
                f"refinement.safetensors is damaged: {str(error).rstrip('.'):.300}."
            ) from error


class _InfoForm(TypedDict):
    name: str
    signed: dict[str, bool]
    divergences: dict[str, float]
    errors: dict[str, float]
    num_samples: Count


def _range_from(tensors: Mapping[str, np.ndarray], name: str, signed: bool) -> QuantizerRange:
    scale, zero_point = stored_range(tensors, name)
    minimum = stored_minimum(tensors, name)
    if f"{name}|codes" not in tensors:
        return QuantizerRange(scale, zero_point, signed, minimum=minimum)
    codes = checked_array(tensors, f"{name}|codes", (np.int8 if signed else np.uint8,))
    check_codes(codes, Scheme.of(name.rpartition("|")[2]), name)
    return QuantizerRange(scale, zero_point, signed, codes, minimum=minimum)
