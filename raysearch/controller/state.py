"""A controller's state, out and in; learned values live in the model's own state dict."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from raysearch.errors import StorageError
from raysearch.records import BitAssignment, QuantizerRange, QuantizerSetup, RangeTable
from raysearch.unknown_keys import nearest

if TYPE_CHECKING:
    from raysearch.controller.controller import QuantizationController

VERSION = 1
_KEYS = (
    "version",
    "setup",
    "assignment",
    "ranges",
    "scheduler",
    "loss",
    "compression_stage",
    "frozen",
    "enabled",
)


def take_state(controller: QuantizationController) -> dict[str, Any]:
    """Everything but learned values, as plain JSON values."""
    return {
        "version": VERSION,
        "setup": controller.setup.to_json(),
        "assignment": dict(controller.assignment.bits),
        "ranges": _ranges_out(controller.ranges),
        "scheduler": controller.scheduler.get_state(),
        "loss": controller.loss.get_state(),
        "compression_stage": controller.compression_stage().name,
        "frozen": controller.frozen_ranges(),
        "enabled": [name for name, q in controller.all_quantizations.items() if q.enabled],
    }


def check_state(state: Mapping[str, Any]) -> None:
    """Refuse what is no state of this version.

    Raises:
        StorageError: a key is missing, or the version is another one.
    """
    if state.get("version") != VERSION:
        raise StorageError(
            f"the controller state has version {state.get('version')!r}, and this raysearch reads {VERSION}."
        )
    missing = [key for key in _KEYS if key not in state]
    if missing:
        raise StorageError(f"the controller state lacks {', '.join(missing)}; it is damaged.")


def check_same_setup(setup: QuantizerSetup, text: str) -> None:
    """Refuse the state of another setup, naming the first quantizer that differs.

    Raises:
        StorageError: they differ.
    """
    other = QuantizerSetup.from_json(text)
    again = "it was saved for another model or configuration; build the controller with the same ones."
    for name, point in other.points.items():
        if name not in setup.points:
            near = nearest(name, setup.points)
            raise StorageError(
                f"the state has the quantizer '{name}', and this model none (nearest: '{near}'): {again}"
            )
        if point != setup.points[name]:
            raise StorageError(f"the quantizer '{name}' of the state differs from this model's: {again}")
    for name in setup.points:
        if name not in other.points:
            raise StorageError(f"the state lacks the quantizer '{name}': {again}")
    for name, group in setup.groups.items():
        if other.groups.get(name) != group:
            raise StorageError(f"the group of '{name}' admits other widths or members in the state: {again}")


def put_state(controller: QuantizationController, state: Mapping[str, Any]) -> None:
    """Put a state into a controller of the same setup; learned ranges of equal width are kept.

    Raises:
        StorageError: the state is damaged or of another setup; nothing was changed.
    """
    check_state(state)
    check_same_setup(controller.setup, state["setup"])
    ranges = ranges_in(state["ranges"])
    controller.adopt(BitAssignment(state["assignment"]), ranges, state["frozen"])
    controller.loss.load_state(state["loss"])
    if not controller.scheduler.staged:  # else the epoch says what is on
        controller.switch_to(state["enabled"])
    controller.scheduler.load_state(state["scheduler"])
    found = controller.compression_stage().name
    if found != state["compression_stage"]:
        warnings.warn(
            f"the state was saved in the stage {state['compression_stage']}, and this controller is in "
            f"{found}: its configuration starts quantization at other epochs",
            stacklevel=3,
        )


def _ranges_out(table: RangeTable) -> list[dict[str, Any]]:
    return [
        {
            "point": point,
            "num_bits": bits,
            "scale": value.scale.tolist(),
            "zero_point": value.zero_point.tolist(),
            "signed": bool(value.signed),
        }
        for (point, bits), value in table.ranges.items()
    ]


def ranges_in(entries: list[dict[str, Any]]) -> RangeTable:
    """The range table of a state.

    Raises:
        StorageError: it is damaged.
    """
    try:
        return RangeTable(
            {
                (e["point"], int(e["num_bits"])): QuantizerRange(
                    np.array(e["scale"], np.float32), np.array(e["zero_point"], np.int32), bool(e["signed"])
                )
                for e in entries
            }
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"the ranges of the controller state are damaged: {error}.") from error
