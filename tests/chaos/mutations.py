"""Damages that disks, networks, editors and people do to files and values; every one is drawn by a seed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 9, 255, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, 1e-320, 1e300,
    float("nan"), float("inf"), -float("inf"), "", "x", "a.b", "..", "NaN", "4g64", "\0", "\ud800", "é",
    "x" * 10_000, [], {}, [[]], [None], [0, 2**40], [2**20, 2**20], [-5, 3], {"a": 1}, {"": []}, [1] * 1000,
)  # fmt: skip
"""What no field, or hardly one, means."""

ODD_KEYS = ("", "a..b", "training", "x" * 300, "\0", "\ud800")

ODD_TEXTS = (
    "", " ", "\n", "\0", "%", "<=", "≤", "=", ".", "e", "-", "+", "µ", "٣", "x", "nan", "inf", "9" * 400,
    "1e-400", "\ud800", "[", "]", "{", "}", "(", ")*", "a" * 50, "\\", "re:", "*", "?", "'", '"', "#", ":",
    "/",
)  # fmt: skip
"""Pieces of text that readers of text stumble over."""


def damaged_bytes(data: bytes, draw: random.Random) -> bytes:
    """A flipped bit, a cut, foreign bytes, the zeros of a lost page, a piece twice, or nothing left."""
    at = draw.randrange(max(1, len(data)))
    kind = draw.choice(("flip", "flip", "cut", "foreign", "insert", "zeros", "repeat", "empty"))
    if kind == "empty" or not data:
        return b"" if data else draw.randbytes(3)
    if kind == "flip":
        changed = bytearray(data)
        for _ in range(draw.choice((1, 1, 2, 16))):
            changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        return bytes(changed)
    if kind == "cut":
        return data[:at]
    size = draw.choice((1, 8, 100))
    if kind == "foreign":
        return data[:at] + draw.randbytes(size) + data[at + size :]
    if kind == "insert":
        return data[:at] + draw.randbytes(size) + data[at:]
    if kind == "zeros":
        return data[:at] + bytes(min(512, len(data) - at)) + data[at + 512 :]
    return data[:at] + data[max(0, at - 64) : at] * draw.choice((1, 200)) + data[at:]


def damaged_text(text: str, draw: random.Random) -> str:
    """The text with odd pieces in it, a letter less, cut off, or turned round."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(text) + 1)
        piece = draw.choice(ODD_TEXTS)
        kind = draw.randrange(5)
        if kind == 0:
            text = text[:at] + piece + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + 1 :]
        elif kind == 2:
            text = text[:at]
        elif kind == 3:
            text = text[:at] + piece + text[at + 1 :]
        else:
            text = text[at:] + text[:at]
    return text


def damaged_value(value: Any, draw: random.Random, odd: Sequence[Any] = ODD_VALUES) -> Any:
    """A copy of a nested value of dicts and lists with a member gone, renamed, doubled or replaced.

    Args:
        value: what JSON can hold.
        draw: random draws.
        odd: what members are replaced by.
    """
    changed = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 3))):
        _damage_member(changed, draw, odd)
    return changed


def _damage_member(holder: Any, draw: random.Random, odd: Sequence[Any]) -> None:
    while holder:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = draw.choice(keys)
        member = holder[key]
        if isinstance(member, dict | list) and member and draw.random() < 0.85:
            holder = member
            continue
        action = draw.random()
        if action < 0.15:
            del holder[key]
        elif action < 0.25 and isinstance(holder, dict):
            holder[draw.choice((*ODD_KEYS, f"{key}.x", f"{key}x"))] = holder.pop(key)
        elif action < 0.3 and isinstance(holder, list):
            holder.append(copy.deepcopy(member))
        elif action < 0.4 and type(member) in (int, float) and abs(member) < 2**60:
            holder[key] = member + draw.choice((-1, 1, 7, -0.5))
        else:
            holder[key] = copy.deepcopy(draw.choice(odd))
        return


def damaged_json(data: bytes, draw: random.Random) -> bytes:
    """JSON of a damaged value, of too many levels, of doubled keys, or in another encoding."""
    kind = draw.random()
    if kind < 0.02:
        return draw.choice((b"[", b'{"a":')) * 100_000
    if kind < 0.04:
        return json.dumps(json.loads(data)).encode(draw.choice(("utf-16", "utf-32", "utf-8-sig")))
    if kind < 0.06:
        return b"9" * 5000
    return json.dumps(damaged_value(json.loads(data), draw)).encode()


def damaged_safetensors(data: bytes, draw: random.Random) -> bytes:
    """A safetensors file with a damaged header that says its length rightly, or another length."""
    length = int.from_bytes(data[:8], "little")
    if draw.random() < 0.1:
        wrong = draw.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(data), 100_000_000))
        return wrong.to_bytes(8, "little") + data[8:]
    header = damaged_json(data[8 : 8 + length], draw)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def damaged_table(table: pa.Table, draw: random.Random) -> pa.Table:
    """A table with rows or a column gone or doubled, another type, odd values, or other metadata."""
    kind = draw.choice(("cell", "cell", "cell", "rows", "drop", "rename", "type", "metadata", "order"))
    place = draw.randrange(table.num_columns)
    name = table.column_names[place]
    if kind == "rows":
        first = draw.randrange(table.num_rows + 1)
        return draw.choice((table.slice(first), table.slice(0, first), pa.concat_tables([table, table])))
    if kind == "drop":
        return table.drop_columns([name])
    if kind == "rename":
        return table.rename_columns(
            [draw.choice(("x", name + "x")) if n == name else n for n in table.column_names]
        )
    if kind == "metadata":
        metadata = dict(table.schema.metadata or {b"x": b"y"})
        metadata[draw.choice(sorted(metadata))] = draw.choice((b"", b"x", b"\xff", b"nan", b"9" * 400))
        return table.replace_schema_metadata(draw.choice((metadata, None)))
    if kind == "order":
        order = list(range(table.num_rows))
        draw.shuffle(order)
        return table.take(order)
    values = table.column(name).to_pylist()
    if kind == "type":
        other = draw.choice(
            (lambda v: [v], lambda v: None, lambda v: repr(v)[:50], lambda v: {"a": 1}, lambda v: 7)
        )
        values = [other(value) for value in values]
    elif values:
        values[draw.randrange(len(values))] = _odd_cell(values, draw)
    try:
        column = pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError, ValueError):
        return table.drop_columns([name])
    return table.set_column(place, name, column)


def _odd_cell(values: list[Any], draw: random.Random) -> Any:
    """Something odd of the column's own type, so that it can be one of its cells."""
    cell = next((value for value in values if value is not None), None)
    if isinstance(cell, str):
        if cell.startswith("{"):
            return damaged_json(cell.encode(), draw).decode("utf-8", "replace")
        return draw.choice((None, damaged_text(cell, draw)))
    if isinstance(cell, list):
        return draw.choice(
            (None, [], cell[1:], [*cell, 0.0], [float("nan")] * len(cell), [1e300] * len(cell))
        )
    if isinstance(cell, bool):
        return draw.choice((None, not cell))
    if isinstance(cell, int):
        return draw.choice((None, -1, 0, 1, 9, 2**62, -(2**62)))
    return draw.choice((None, float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e300, -1e300, 1e-320))


def damaged_record(name: str, data: bytes, draw: random.Random) -> bytes:
    """A file of a run that its format can still read, with something in it that is wrong; or plain damage."""
    if draw.random() < 0.15:
        return damaged_bytes(data, draw)
    if name.endswith(".json"):
        return damaged_json(data, draw)
    if name.endswith(".safetensors"):
        return damaged_safetensors(data, draw)
    if name.endswith(".parquet"):
        return _written(damaged_table(pq.read_table(pa.BufferReader(data)), draw), pq.write_table)
    if name.endswith(".arrow"):
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        return _written(damaged_table(table, draw), _write_arrow)
    return damaged_bytes(data, draw)


def _written(table: pa.Table, write: Callable[[pa.Table, pa.BufferOutputStream], None]) -> bytes:
    sink = pa.BufferOutputStream()
    write(table, sink)
    return bytes(sink.getvalue())


def _write_arrow(table: pa.Table, sink: pa.BufferOutputStream) -> None:
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
