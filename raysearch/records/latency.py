"""Measured seconds of every layer by bit-width, on one machine with one runtime."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raysearch.errors import ConfigError
from raysearch.records.typed_json import parsed

PICOSECONDS = 10**12
"""Units in a second: times are added as whole picoseconds, so that sums do not depend on their order."""

FLOAT_LEVEL, KERNEL_LEVEL = "float", "8"


@dataclass(frozen=True)
class LatencyProfile:
    """How long each layer takes at each width; the model's latency is `other_seconds` plus their sum.

    A level is "float", "8" or another width that weight and input both fit, or "w4a8" for exactly one pair.
    A pair (w, a) takes the time of "w{w}a{a}" if that was measured, else of max(w, a), else of "8": runtimes
    compute in 8 bits what is stored in fewer. A layer whose input is float takes that of "w{w}a32", else of
    "float".

    Attributes:
        layers: weight id → level → seconds for one batch.
        other_seconds: everything else in the model.
        machine: such as {"cpu": …, "instructions": …, "threads": …, "batch": …}; the times mean nothing
            without it.
        runtime: what ran the model.
        versions: package → version.
        kernels: weight id → level → the runtime's operation that took the time; for reading only.
        checks: what was run as a whole → "predicted" and "measured" seconds; for reading only.
    """

    layers: Mapping[str, Mapping[str, float]]
    other_seconds: float = 0.0
    machine: Mapping[str, str] = field(default_factory=dict)
    runtime: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    kernels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    checks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, levels in {**self.layers, "other_seconds": {KERNEL_LEVEL: self.other_seconds}}.items():
            for level, seconds in levels.items():
                if not (math.isfinite(seconds) and seconds >= 0):
                    raise ConfigError(
                        f"the latency profile gives '{name}' {seconds} seconds at '{level}'; a time is "
                        "finite and at least 0. Measure it again."
                    )
        for name, levels in self.layers.items():
            if missing := {FLOAT_LEVEL, KERNEL_LEVEL} - levels.keys():
                raise ConfigError(
                    f"the latency profile has no '{min(missing)}' time of '{name}', only "
                    f"{', '.join(levels) or 'none'}; every layer needs '{FLOAT_LEVEL}' and '{KERNEL_LEVEL}'. "
                    "Measure it."
                )

    def picoseconds(self, weight: str, weight_bits: int, input_bits: int) -> int:
        """Time of a weight's layer at a pair of widths; 32 is float.

        Args:
            weight: id of the layer's weight.
            weight_bits: width of the weight.
            input_bits: width of the layer's input.

        Raises:
            ConfigError: the profile lacks the layer.
        """
        if weight not in self.layers:
            raise ConfigError(
                f"the latency profile has no time of '{weight}'; it has {len(self.layers)} layers "
                f"({', '.join(list(self.layers)[:3])}, …). Measure the profile with this model."
            )
        levels, wider = self.layers[weight], max(weight_bits, input_bits)
        fallback = FLOAT_LEVEL if wider > 8 else KERNEL_LEVEL
        exact = (level for level in (f"w{weight_bits}a{input_bits}", str(wider)) if level in levels)
        return round(levels[next(exact, fallback)] * PICOSECONDS)

    def to_json(self) -> str:
        """The profile as JSON text; `from_json` reads it back."""
        return json.dumps(self.as_dict(), indent=1)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "layers": {name: dict(levels) for name, levels in self.layers.items()},
            "other_seconds": self.other_seconds,
            "machine": dict(self.machine),
            "runtime": self.runtime,
            "versions": dict(self.versions),
            "kernels": {name: dict(levels) for name, levels in self.kernels.items()},
            "checks": {name: dict(values) for name, values in self.checks.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LatencyProfile:
        """Read what `as_dict` gave; only `layers` must be there.

        Raises:
            ConfigError: it is no profile, or a time is missing, or is no finite number of at least 0.
        """
        try:
            return cls._of(data)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise ConfigError(
                f"the latency profile cannot be read: {error!r:.200}. It is JSON: "
                '{"layers": {WEIGHT: {"float": SECONDS, "8": SECONDS}}}.'
            ) from error

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> LatencyProfile:
        return cls(
            {str(n): {str(k): float(s) for k, s in levels.items()} for n, levels in data["layers"].items()},
            float(data.get("other_seconds", 0.0)),
            {str(key): str(value) for key, value in data.get("machine", {}).items()},
            str(data.get("runtime", "")),
            {str(key): str(value) for key, value in data.get("versions", {}).items()},
            {
                str(n): {str(k): str(v) for k, v in levels.items()}
                for n, levels in data.get("kernels", {}).items()
            },
            {
                str(n): {str(k): float(v) for k, v in levels.items()}
                for n, levels in data.get("checks", {}).items()
            },
        )

    @classmethod
    def from_json(cls, text: str) -> LatencyProfile:
        """Read a profile's file.

        Raises:
            ConfigError: the text is no latency profile.

        Example:
            >>> profile = LatencyProfile.from_json('{"layers": {"fc.weight": {"float": 2e-3, "8": 1e-3}}}')
            >>> profile.picoseconds("fc.weight", 4, 8)
            1000000000
        """
        try:
            data = parsed(text)
        except ValueError as error:
            raise ConfigError(f"the latency profile cannot be read, for it is no JSON: {error!s}.") from error
        return cls.from_dict(data)
