"""How far training is, and the folder in which it is kept for an interrupted one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from raysearch.artifacts import Storage, hashed, without_hash
from raysearch.errors import StorageError
from raysearch.records import EpochMetrics
from raysearch.records.typed_json import parsed

CALIBRATED = -1
"""The epoch by which the calibrated model goes that no step has changed yet."""

RUNNING = "training"
"""The folder of the checkpoints of a training that is going on."""

KEPT = 2
"""Checkpoints that stay: the last may be damaged."""

_RECORD = "progress"
_STEP = "step-"


@dataclass
class Progress:
    """Everything a loop needs to go on after an interruption, but for tensors.

    Attributes:
        next_epoch: the first epoch that is not done.
        epoch_steps: optimizer steps of it that are done.
        step: optimizer steps that are done in all.
        history: metrics per epoch; the first is of the calibrated model.
        best_epoch: the epoch with the least monitored value.
        best_step: the optimizer steps that were done then.
        best_state: the model's state then, as safetensors bytes.
        settings: those of the last step.
        remarks: what a reader of the result should know of how it went.
        last_epoch_steps: optimizer steps of the last epoch that is done; 0 before there was one.
        assignment: digest of the widths that are trained; "" in a checkpoint of before it was kept.
    """

    next_epoch: int = 0
    epoch_steps: int = 0
    step: int = 0
    history: list[EpochMetrics] = field(default_factory=list)
    best_epoch: int = CALIBRATED
    best_step: int = 0
    best_state: bytes = b""
    settings: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    last_epoch_steps: int = 0
    assignment: str = ""

    def to_json(self) -> str:
        """All but the state, as JSON text."""
        data = asdict(self)
        del data["best_state"]
        return json.dumps(data)

    @classmethod
    def from_json(cls, text: str) -> Progress:
        """Read what `to_json` wrote."""
        data = parsed(text)
        history = [EpochMetrics(entry["epoch"], entry["metrics"]) for entry in data.pop("history")]
        return cls(history=history, **data)


class CheckpointFolder:
    """Checkpoints of a training: one safetensors file each, its record as JSON in the file's header.

    A file is written whole or not at all, with a hash behind it; the last two stay, with the best states that
    they speak of. What is damaged counts as not there.

    Args:
        storage: the folder; None keeps nothing.
    """

    def __init__(self, storage: Storage | None) -> None:
        self._storage = storage
        # Step of each checkpoint that stays, and of the best state that it speaks of.
        self._present: list[tuple[int, int]] = []

    def save(self, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        """Write a checkpoint, and delete those that are older than the last one.

        Args:
            progress: how far training is.
            tensors: whatever the loop needs to go on.

        Raises:
            StorageError: it cannot be written.
        """
        if self._storage is None:
            return
        best = _best_name(progress.best_step)
        if progress.best_step not in {best_step for _, best_step in self._present}:
            self._storage.write_bytes(best, hashed(progress.best_state))
        data = save(dict(tensors), {_RECORD: progress.to_json()})
        self._storage.write_bytes(_name(progress.step), hashed(data))
        earlier = [pair for pair in self._present if pair[0] != progress.step]
        self._present = [*earlier, (progress.step, progress.best_step)][-KEPT:]
        names = {_name(step) for step, _ in self._present}
        names |= {_best_name(best_step) for _, best_step in self._present}
        for name in self._storage.list():
            if name not in names and name.endswith(".safetensors"):
                self._storage.delete_file(name)

    @property
    def is_kept(self) -> bool:
        """Whether there is a folder."""
        return self._storage is not None

    def shown(self) -> str:
        """Where it is, as messages give it."""
        return "" if self._storage is None else self._storage.shown()

    def last_step(self) -> int | None:
        """The step of the last checkpoint, whole or not; None where there is none."""
        return max(map(_step_of, self._names()), default=None)

    def discard(self, step: int) -> bool:
        """Delete the checkpoint of a step; the one before it is then the last. False where there is none.

        Args:
            step: optimizer steps that were done.
        """
        if self._storage is None or _name(step) not in self._names():
            return False
        try:
            self._storage.delete_file(_name(step))
        except StorageError:
            # Another worker of the group may have been faster.
            if _name(step) in self._names():
                raise
        return True

    def _names(self) -> list[str]:
        files = () if self._storage is None else self._storage.list()
        return sorted(name for name in files if name.startswith(_STEP))

    def latest(self) -> tuple[Progress, dict[str, Tensor]] | None:
        """The last whole checkpoint; None where there is none."""
        if self._storage is None:
            return None
        for name in reversed(self._names()):
            try:
                data = self._read(name)
                tensors = load(data)
                progress = Progress.from_json(_header(data)[_RECORD])
                progress.best_state = self._read(_best_name(progress.best_step))
            except (SafetensorError, StorageError, ValueError, LookupError, TypeError, AttributeError):
                # The one before it is still there.
                continue
            self._present = [(progress.step, progress.best_step)]
            return progress, tensors
        return None

    def _read(self, name: str) -> bytes:
        assert self._storage is not None
        return without_hash(self._storage.read_bytes(name), self._storage.shown(name))


def _name(step: int) -> str:
    return f"{_STEP}{step:08d}.safetensors"


def _step_of(name: str) -> int:
    return int(name.removeprefix(_STEP).partition(".")[0])


def _best_name(step: int) -> str:
    return f"best-{step:08d}.safetensors"


def _header(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = parsed(data[8 : 8 + length])["__metadata__"]
    return metadata
