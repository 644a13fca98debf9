"""Trials as a table: a row a trial, and structs with a field for each group, cost and budget."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from raysearch.errors import PlacementError, StorageError
from raysearch.records.assignment import BitAssignment
from raysearch.records.search import SearchTrial, TrialState
from raysearch.records.typed_json import read_json
from raysearch.records.typed_tables import checked_table

_PLAIN = pa.schema(
    [
        ("number", pa.int64()),
        ("state", pa.string()),
        ("value", pa.float64()),
        ("predicted", pa.float64()),
        ("source", pa.string()),
        ("num_samples", pa.int64()),
        ("system_attrs", pa.string()),
    ]
)
_ADDED: Mapping[str, Any] = {"num_samples": 0, "system_attrs": {}, "rounds": {}}
"""Columns that tables of older runs lack, and what they mean there."""

_TEXTS: Mapping[str, Any] = {
    "assignment": dict[str, int | str],
    "costs": dict[str, float],
    "excess": dict[str, float],
    "rounds": dict[str, float],
    "system_attrs": dict[str, Any],
}
"""Columns that are, or were in older runs, JSON objects, and what is in those."""

_ROUNDS = pa.map_(pa.int64(), pa.float64())


def trials_to_table(trials: tuple[SearchTrial, ...]) -> pa.Table:
    """One row a trial.

    `assignment` is a struct of groups: a number where all trials have plain bit-widths there, else the
    scheme's text. `costs` and `excess` are structs of numbers, `rounds` is a map. A struct without fields,
    which no file can hold, is the text "{}", and what Optuna noted, of whatever form, is JSON.
    """
    table = pa.Table.from_pylist([_row_of(trial) for trial in trials], schema=_PLAIN)
    columns = {
        "assignment": _schemes([trial.assignment for trial in trials]),
        "costs": _numbers([trial.costs for trial in trials]),
        "excess": _numbers([trial.excess for trial in trials]),
        "rounds": pa.array([list(trial.rounds.items()) for trial in trials], type=_ROUNDS),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def _row_of(trial: SearchTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": str(trial.state),
        "value": trial.value,
        "predicted": trial.predicted,
        "source": trial.source,
        "num_samples": trial.num_samples,
        "system_attrs": json.dumps(dict(trial.system_attrs)),
    }


def _numbers(entries: Sequence[Mapping[str, float]]) -> pa.Array:
    fields = {
        name: pa.array([entry.get(name) for entry in entries], type=pa.float64()) for name in _names(entries)
    }
    return _struct(fields, len(entries))


def _schemes(assignments: Sequence[BitAssignment]) -> pa.Array:
    fields = {}
    for name in _names([assignment.schemes for assignment in assignments]):
        schemes = [assignment.schemes.get(name) for assignment in assignments]
        if all(scheme is None or scheme.is_plain for scheme in schemes):
            widths = [None if scheme is None else scheme.num_bits for scheme in schemes]
            fields[name] = pa.array(widths, type=pa.int64())
        else:
            texts = [None if scheme is None else str(scheme) for scheme in schemes]
            fields[name] = pa.array(texts, type=pa.string())
    return _struct(fields, len(assignments))


def _names(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for name in entry))


def _struct(fields: Mapping[str, pa.Array], num_rows: int) -> pa.Array:
    if not fields:
        return pa.array(["{}"] * num_rows, type=pa.string())
    return pa.StructArray.from_arrays(list(fields.values()), list(fields))


def trials_from_table(table: pa.Table, file: str = "trials.parquet") -> tuple[SearchTrial, ...]:
    """Read what `trials_to_table` wrote, or an earlier version, whose structs are JSON texts.

    Args:
        table: as it was read.
        file: what messages call it.

    Raises:
        StorageError: a column is missing, of another type, or holds no value of its form.
    """
    schema = _schema_of(table)
    checked_table(table, schema, file, _ADDED)
    columns: dict[str, list[Any]] = {}
    for field in schema:
        name = field.name
        if name not in table.column_names:
            columns[name] = [_ADDED[name]] * table.num_rows
            continue
        values = table.column(name).to_pylist()
        if name in _TEXTS and pa.types.is_string(field.type):
            values = _objects(_TEXTS[name], values, f"the column '{name}' of {file}")
        elif pa.types.is_struct(field.type):
            # A group that a trial leaves float has no scheme, and a kind that it lacks no cost.
            values = [{key: part for key, part in each.items() if part is not None} for each in values]
        elif pa.types.is_map(field.type):
            values = [dict(each) for each in values]
        columns[name] = values
    trials: list[SearchTrial] = []
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        try:
            trials.append(_trial_of(row))
        except (ValueError, PlacementError) as error:
            text = str(error).rstrip(".")
            raise StorageError(f"{file} is damaged in the trial {row['number']}: {text:.300}.") from error
    return tuple(trials)


def _schema_of(table: pa.Table) -> pa.Schema:
    """The columns that are due: structs and the map as they are in the table, where they may be such."""
    schema = _PLAIN
    for name in ("assignment", "costs", "excess", "rounds"):
        places = table.schema.get_all_field_indices(name)
        own = table.schema.field(places[0]).type if len(places) == 1 else pa.string()
        schema = schema.append(pa.field(name, own if _may_be(name, own) else pa.string()))
    return schema


def _may_be(name: str, own: pa.DataType) -> bool:
    if name == "rounds":
        return bool(own == _ROUNDS)
    allowed = (pa.int64(), pa.string()) if name == "assignment" else (pa.float64(),)
    return pa.types.is_struct(own) and all(field.type in allowed for field in own)


def _objects(form: Any, texts: list[str], where: str) -> list[Any]:
    """The JSON objects of a column, read at once: each alone takes longer to begin than to end."""
    objects: list[Any] = read_json(list[form], f"[{','.join(texts)}]", where)
    if len(objects) != len(texts):
        raise StorageError(f"{where} is damaged: {len(texts)} cells hold {len(objects)} objects.")
    return objects


def _trial_of(row: Mapping[str, Any]) -> SearchTrial:
    # The keys of a JSON object are texts.
    rounds = {int(num_samples): mean for num_samples, mean in row["rounds"].items()}
    state, assignment = TrialState(row["state"]), BitAssignment(row["assignment"])
    trial = SearchTrial(**{**row, "assignment": assignment, "state": state, "rounds": rounds})
    if trial.number < 0 or (not trial.has_failed and not math.isfinite(trial.value)):
        raise ValueError(f"the value of a trial that is {trial.state} is {trial.value}")
    return trial
