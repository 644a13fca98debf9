"""Arrow tables and JSON values as bytes."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysearch.errors import StorageError


def to_parquet(table: pa.Table) -> bytes:
    """A table in the Parquet format."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def to_arrow(table: pa.Table) -> memoryview:
    """A table in the Arrow IPC file format: float64 as it lies in memory, fast to map and read."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def from_parquet(data: bytes | memoryview, shown: str) -> pa.Table:
    """Read what `to_parquet` wrote; `shown` names the file in messages.

    Raises:
        StorageError: the bytes are no Parquet file.
    """
    try:
        table = pq.read_table(pa.BufferReader(data))
        table.validate(full=True)
        return table
    except (pa.ArrowException, OSError) as error:
        raise _damaged(shown, error) from error


def from_arrow(data: bytes | memoryview, shown: str) -> pa.Table:
    """Read what `to_arrow` wrote; `shown` names the file in messages.

    Raises:
        StorageError: the bytes are no Arrow file.
    """
    try:
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        # Arrow trusts the offsets in a file: without this look at them, a changed bit ends the process.
        table.validate(full=True)
        return table
    except (pa.ArrowException, OSError) as error:
        raise _damaged(shown, error) from error


def from_json(data: bytes, shown: str) -> dict[str, Any]:
    """Read a JSON object; `shown` names the file in messages.

    Raises:
        StorageError: the bytes are no JSON object.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged(shown, error) from error
    if not isinstance(value, dict):
        raise _damaged(shown, "it holds no JSON object")
    return value


def _damaged(shown: str, error: object) -> StorageError:
    return StorageError(f"{shown} is damaged: {error}.")
