"""Curves as a table in the run's folder."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pyarrow as pa

from raysearch.artifacts import Storage
from raysearch.artifacts.tables import from_parquet, to_parquet
from raysearch.errors import StorageError
from raysearch.records import TrainingStatus

CURVES = "training.parquet"


class ParquetLogger:
    """A row a step or validation in `training.parquet`; a training that goes on adds to the rows.

    Written after every validation and at the end. Nothing is computed from it, so where it cannot be written
    training goes on.

    Args:
        storage: the run's folder.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._rows: list[dict[str, Any]] = []
        if storage.exists(CURVES):
            try:
                self._rows = from_parquet(storage.read_bytes(CURVES), CURVES).to_pylist()
            except StorageError:
                self._rows = []

    def log(self, status: TrainingStatus) -> None:
        """Add a row."""
        row: dict[str, Any] = {
            "epoch": status.epoch,
            "step": status.step,
            "loss": status.loss,
            "learning_rate": status.learning_rate,
        }
        if status.loss is None:
            row |= {f"validation_{name}": value for name, value in status.validation.items()}
        self._rows.append(row)
        if status.loss is None:
            self._write()

    def close(self) -> None:
        """Write the rows of steps behind the last validation as well."""
        if self._rows:
            self._write()

    def _write(self) -> None:
        """Write the rows; of steps that were taken twice the later ones."""
        latest = {(row["step"], row["loss"] is None): row for row in self._rows}
        rows = [latest[key] for key in sorted(latest)]
        names = sorted({name for row in rows for name in row if name.startswith("validation_")})
        columns = ["epoch", "step", "loss", "learning_rate", *names]
        table = pa.table({name: [row.get(name) for row in rows] for name in columns})
        with suppress(StorageError):
            self._storage.write_bytes(CURVES, to_parquet(table), durable=False)
