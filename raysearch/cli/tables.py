"""Tables on a terminal: no line is wider than it, names keep their ends, what repeats is said once."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby, takewhile

from rich.cells import cell_len, set_cell_size

from raysearch.records.costs.text import MISSING
from raysearch.reporting.grids import Grid, Row
from raysearch.reporting.printable import printable_line

GAP = "  "
MANY_ROWS = 40
"""From here on rows of repeated blocks that say the same are one row."""
LEAST_NAME = 12
"""Columns that a name keeps, however narrow the screen."""
_NUMBER = re.compile(r"^[−+±÷×]?\d.*$|^[–∞]?$")
_DIGITS = re.compile(r"\d+")


class Format(StrEnum):
    """How a table is printed."""

    TABLE = "table"
    CSV = "csv"
    MARKDOWN = "md"
    JSON = "json"


def table_text(grid: Grid, form: Format, width: int, *, wide: bool = False) -> str:
    """A table as text.

    Args:
        grid: the table.
        form: how it is printed; `width` and `wide` are for `Format.TABLE` alone.
        width: columns of the screen.
        wide: every row and column whole, however long the lines are.
    """
    if form is Format.CSV:
        return _csv(grid)
    if form is Format.MARKDOWN:
        return _markdown(grid)
    if form is Format.JSON:
        rows = [dict(zip(grid.columns, (row.name, *row.cells), strict=True)) for row in grid.rows]
        return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    return "\n".join(_lines(grid, width, wide)) + "\n"


def _csv(grid: Grid) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(grid.columns)
    writer.writerows((row.name, *row.cells) for row in grid.rows)
    return stream.getvalue()


def _markdown(grid: Grid) -> str:
    def line(cells: Sequence[str]) -> str:
        # What would end a cell, or begin a tag, an image, code or emphasis.
        escaped = [re.sub(r"([|<`*\[\\])", r"\\\1", cell).replace("\n", " ") for cell in cells]
        return f"| {' | '.join(escaped)} |"

    rule = "|" + "---|" * len(grid.columns)
    return "\n".join([line(grid.columns), rule, *(line((row.name, *row.cells)) for row in grid.rows)]) + "\n"


def _lines(grid: Grid, width: int, wide: bool) -> list[str]:
    rows = [Row(printable_line(row.name), tuple(map(printable_line, row.cells))) for row in grid.rows]
    grid = replace(grid, rows=tuple(rows))
    remarks: list[str] = []
    if not wide:
        grid, remarks = _without_constants(grid)
        grid = _merged(grid)
        grid, prefix = _without_prefix(grid)
        if prefix:
            remarks.insert(0, f"names below {prefix}")
    lines = [grid.title] if grid.title else []
    lines += [f"({'; '.join(remarks)})"] if remarks else []
    if wide:
        lines += _block_lines(grid, None)
    else:
        blocks = _blocks(grid, width)
        texts = ["\n".join(_block_lines(block, width)) for block in blocks]
        lines.append("\n\n".join(texts))
    # A sentence is the terminal's to break.
    return [*lines, *([grid.caption] if grid.caption else []), ""]


def _without_constants(grid: Grid) -> tuple[Grid, list[str]]:
    """Columns that say the same in every row are said once, or not at all where they say nothing."""
    if len(grid.rows) < 3:
        return grid, []
    columns = list(zip(*(row.cells for row in grid.rows), strict=True))
    constant = [place for place, cells in enumerate(columns) if len(set(cells)) == 1]
    # Of a table with one column left nothing could be read.
    if len(constant) >= len(columns):
        return grid, []
    remarks = [f"{grid.columns[place + 1]}: {columns[place][0]}" for place in constant]
    varying = [place for place in range(len(columns)) if place not in constant]
    rows = tuple(Row(row.name, tuple(row.cells[place] for place in varying)) for row in grid.rows)
    names = (grid.columns[0], *(grid.columns[place + 1] for place in varying))
    said = [remark for remark in remarks if not remark.endswith((": ", ": –"))]
    return replace(grid, columns=names, rows=rows), said


def _without_prefix(grid: Grid) -> tuple[Grid, str]:
    """The dotted path that all names begin with is said once."""
    paths = [row.name.split(".")[:-1] for row in grid.rows]
    if len(paths) < 3:
        return grid, ""
    levels = zip(*paths, strict=False)
    shared = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, levels)]
    prefix = ".".join(shared)
    if not prefix:
        return grid, ""
    rows = tuple(replace(row, name=row.name[len(prefix) + 1 :]) for row in grid.rows)
    return replace(grid, rows=rows), prefix


@dataclass(frozen=True)
class _Repeated:
    """Rows of one form of name that say the same."""

    form: str
    numbers: tuple[int, ...]
    row: Row


def _merged(grid: Grid) -> Grid:
    """Of many rows those of repeated blocks are one, where they say the same: `layers.{0-11}.q.weight`."""
    if len(grid.rows) < MANY_ROWS:
        return grid
    repeated: dict[tuple[str, tuple[str, ...]], list[_Repeated]] = {}
    for row in grid.rows:
        digits = _DIGITS.search(row.name)
        form = row.name if digits is None else f"{row.name[: digits.start()]}\0{row.name[digits.end() :]}"
        numbers = () if digits is None else (int(digits[0]),)
        repeated.setdefault((form, row.cells), []).append(_Repeated(form, numbers, row))
    rows = []
    for same in repeated.values():
        if len(same) == 1:
            rows.append(same[0].row)
            continue
        ascending = sorted(number for each in same for number in each.numbers)
        name = same[0].form.replace("\0", f"{{{','.join(_spans(ascending))}}}")
        rows.append(Row(name, same[0].row.cells))
    return replace(grid, rows=tuple(rows))


def _spans(numbers: Sequence[int]) -> Iterator[str]:
    """Ascending numbers, neighbours as one span.

    Example:
        >>> list(_spans([0, 1, 2, 5, 7, 8]))
        ['0-2', '5', '7-8']
    """
    for _, span in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        values = [value for _, value in span]
        yield str(values[0]) if len(values) == 1 else f"{values[0]}-{values[-1]}"


def _widths(grid: Grid) -> list[int]:
    rows = [grid.columns, *((row.name, *row.cells) for row in grid.rows)]
    return [max(map(cell_len, column)) for column in zip(*rows, strict=True)]


def _blocks(grid: Grid, width: int) -> list[Grid]:
    """The table in blocks of columns that fit the screen, each with the names."""
    name, *others = _widths(grid)
    names = max(LEAST_NAME, min(name, width // 2))
    blocks: list[list[int]] = [[]]
    room = width - names
    for place, size in enumerate(others):
        if blocks[-1] and size + len(GAP) > room:
            blocks.append([])
            room = width - names
        blocks[-1].append(place)
        room -= size + len(GAP)
    if len(blocks) == 1:
        return [grid]
    return [_with_columns(grid, places) for places in blocks]


def _with_columns(grid: Grid, places: Sequence[int]) -> Grid:
    """Some columns, without the rows that say nothing there but something elsewhere."""
    columns = (grid.columns[0], *(grid.columns[place + 1] for place in places))
    rows: list[Row] = []
    for row in grid.rows:
        cells = tuple(row.cells[place] for place in places)
        if _says_something(cells) or not _says_something(row.cells):
            rows.append(Row(row.name, cells))
    return replace(grid, columns=columns, rows=tuple(rows))


def _says_something(cells: Sequence[str]) -> bool:
    return any(cell not in ("", MISSING) for cell in cells)


def _block_lines(grid: Grid, width: int | None) -> list[str]:
    name, *others = _widths(grid)
    if width is not None:
        name = max(LEAST_NAME, min(name, width - sum(others) - len(GAP) * len(others)))
    right = [
        all(_NUMBER.match(row.cells[place]) for row in grid.rows) for place in range(len(grid.columns) - 1)
    ]

    def line(first: str, cells: Sequence[str]) -> str:
        parts = [set_cell_size(_cut(first, name), name)]
        for text, size, is_right in zip(cells, others, right, strict=True):
            space = " " * (size - cell_len(text))
            parts.append(space + text if is_right else text + space)
        return GAP.join(parts).rstrip()

    rule = "─" * min(name + sum(others) + len(GAP) * len(others), width or 10**6)
    return [line(grid.columns[0], grid.columns[1:]), rule, *(line(row.name, row.cells) for row in grid.rows)]


def _cut(name: str, width: int) -> str:
    """A name that fits, cut at its left: its end says which layer it is."""
    if cell_len(name) <= width:
        return name
    rest = name
    while cell_len(rest) > width - 1:
        rest = rest[1:]
    return f"…{rest}"
