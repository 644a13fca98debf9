"""A controller's state as plain values; learned values live in the model's own state dict."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from raysearch.errors import PlacementError, StorageError
from raysearch.records import (
    BitAssignment,
    QuantizationPoint,
    QuantizerRange,
    QuantizerSetup,
    RangeTable,
    Scheme,
)
from raysearch.unknown_keys import nearest

VERSION = 1


@dataclass(frozen=True)
class ControllerState:
    """Everything of a controller but learned values.

    Attributes:
        setup: where the quantizers are.
        assignment: the widths in force.
        ranges: calibrated ranges, by quantizer and width.
        scheduler: its counters, and which kinds have started.
        loss: what the loss keeps.
        compression_stage: name of the stage, to notice another schedule after a resume.
        frozen: quantizers whose range parameters the user froze.
        enabled: quantizers that act.
    """

    setup: QuantizerSetup
    assignment: BitAssignment
    ranges: RangeTable
    scheduler: Mapping[str, Any]
    loss: Mapping[str, Any]
    compression_stage: str
    frozen: tuple[str, ...]
    enabled: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return {
            "version": VERSION,
            "setup": self.setup.to_json(),
            "assignment": self.assignment.as_json,
            "ranges": _ranges_to_json(self._ranges_to_save()),
            "scheduler": dict(self.scheduler),
            "loss": dict(self.loss),
            "compression_stage": self.compression_stage,
            "frozen": list(self.frozen),
            "enabled": list(self.enabled),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ControllerState:
        """Read what `to_json` gave.

        Raises:
            StorageError: a key is missing, a value is damaged, or the version is another one.
        """
        if values.get("version") != VERSION:
            raise StorageError(
                f"the controller state has version {values.get('version')!r}, and this raysearch reads "
                f"{VERSION}."
            )
        missing = [field.name for field in fields(cls) if field.name not in values]
        if missing:
            raise StorageError(f"the controller state lacks {', '.join(missing)}; it is damaged.")
        return cls(
            setup=QuantizerSetup.from_json(values["setup"]),
            assignment=_assignment_from_json(values["assignment"]),
            ranges=_ranges_from_json(values["ranges"]),
            scheduler=values["scheduler"],
            loss=values["loss"],
            compression_stage=values["compression_stage"],
            frozen=tuple(values["frozen"]),
            enabled=tuple(values["enabled"]),
        )

    def check_setup(self, setup: QuantizerSetup) -> None:
        """Refuse a setup that this state is not of, naming the first quantizer that differs.

        Raises:
            StorageError: they differ.
        """
        for name, point in self.setup.points.items():
            _check_point(point, setup, name)
        for name in setup.points:
            if name not in self.setup.points:
                raise StorageError(f"the state lacks the quantizer '{name}': {_ANOTHER_MODEL}")
        for name, group in setup.groups.items():
            if self.setup.groups.get(name) != group:
                raise StorageError(
                    f"the group of '{name}' admits other widths or members in the state: {_ANOTHER_MODEL}"
                )

    def _ranges_to_save(self) -> RangeTable:
        """The calibrated ranges, but those that rounding chose for the assignment in force.

        The weights lie where these give the chosen codes, so the codes need not be stored.
        """
        options, rounded = self.assignment.per_point(self.setup).items(), self.ranges.rounded
        in_force = {option: rounded[option] for option in options if option in rounded}
        return RangeTable({**self.ranges.ranges, **in_force})

    def compare_stage(self, stage: str) -> None:
        """Warn where a controller with this state is in another stage than it was."""
        if stage != self.compression_stage:
            warnings.warn(
                f"the state was saved in the stage {self.compression_stage}, and this controller is in "
                f"{stage}: its configuration starts quantization at other epochs",
                stacklevel=3,
            )


_ANOTHER_MODEL = "it was saved for another model or configuration; build the controller with the same ones."


def _check_point(point: QuantizationPoint, setup: QuantizerSetup, name: str) -> None:
    if name not in setup.points:
        raise StorageError(
            f"the state has the quantizer '{name}', and this model none (nearest: "
            f"'{nearest(name, setup.points)}'): {_ANOTHER_MODEL}"
        )
    if point != setup.points[name]:
        raise StorageError(f"the quantizer '{name}' of the state differs from this model's: {_ANOTHER_MODEL}")


def _assignment_from_json(values: Mapping[str, int | str]) -> BitAssignment:
    try:
        return BitAssignment(values)
    except (AttributeError, PlacementError) as error:
        raise StorageError(f"the assignment of the controller state is damaged: {error}.") from error


def _ranges_to_json(table: RangeTable) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for (point, scheme), value in table.ranges.items():
        entry: dict[str, Any] = {
            "point": point,
            "num_bits": scheme.as_json,
            "scale": value.scale.tolist(),
            "zero_point": value.zero_point.tolist(),
            "signed": bool(value.signed),
        }
        if value.minimum is not None:
            entry["minimum"] = value.minimum.tolist()
        entries.append(entry)
    return entries


def _ranges_from_json(entries: list[dict[str, Any]]) -> RangeTable:
    ranges: dict[tuple[str, Scheme], QuantizerRange] = {}
    try:
        for entry in entries:
            scale = np.array(entry["scale"], np.float32)
            zero_point = np.array(entry["zero_point"], np.int32)
            minimum = np.array(entry["minimum"], np.float32) if "minimum" in entry else None
            value = QuantizerRange(scale, zero_point, bool(entry["signed"]), minimum=minimum)
            ranges[entry["point"], Scheme.of(entry["num_bits"])] = value
    except (KeyError, TypeError, ValueError, PlacementError) as error:
        raise StorageError(f"the ranges of the controller state are damaged: {error}.") from error
    return RangeTable(ranges)
