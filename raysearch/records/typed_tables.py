"""Tables and arrays of a record, whose types are looked at before they are used."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysearch.errors import StorageError


def checked_table(table: pa.Table, schema: pa.Schema, file: str, added: Collection[str] = ()) -> pa.Table:
    """A table with the columns of a schema, of its types and without holes.

    Args:
        table: as it was read.
        schema: the columns.
        file: what messages call it.
        added: columns that tables of earlier versions lack.

    Raises:
        StorageError: names the column, its type and the one that is due.
    """
    for field in schema:
        places = table.schema.get_all_field_indices(field.name)
        if not places and field.name in added:
            continue
        if len(places) != 1:
            raise StorageError(
                f"{file} is damaged: it has {len(places)} columns '{field.name}'; it needs "
                f"{', '.join(schema.names)}."
            )
        column = table.column(places[0])
        if column.type != field.type:
            raise StorageError(
                f"{file} is damaged: the column '{field.name}' holds {column.type} where {field.type} is due."
            )
        if column.null_count:
            raise StorageError(f"{file} is damaged: {column.null_count} cells of '{field.name}' are empty.")
    unknown = [name for name in table.column_names if name not in schema.names]
    if unknown:
        raise StorageError(
            f"{file} is damaged: its column '{unknown[0]:.60}' is unknown; it has {', '.join(schema.names)}."
        )
    return table


def checked_array(
    tensors: Mapping[str, npt.NDArray[Any]], name: str, dtypes: Collection[type], num_dims: int | None = None
) -> npt.NDArray[Any]:
    """One array of a file, of a type and a number of dimensions.

    Args:
        tensors: of the file.
        name: the array's.
        dtypes: those that it may have.
        num_dims: how many dimensions it has; None: any.

    Raises:
        ValueError: it is not there, or is another; says what is due.
    """
    if name not in tensors:
        raise ValueError(f"it has no '{name:.200}'")
    array = tensors[name]
    allowed = [np.dtype(dtype) for dtype in dtypes]
    if array.dtype not in allowed:
        raise ValueError(f"'{name:.200}' is {array.dtype} where {' or '.join(map(str, allowed))} is due")
    if num_dims is not None and array.ndim != num_dims:
        raise ValueError(f"'{name:.200}' has {array.ndim} dimensions where {num_dims} is due")
    return array
