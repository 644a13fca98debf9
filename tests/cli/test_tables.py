"""Tables of any size on a terminal of any width, and as CSV, Markdown and JSON."""

import csv
import io
import json

import pytest
from rich.cells import cell_len

from raysearch.cli.tables import Format, table_text
from raysearch.reporting.grids import Grid, Row
from raysearch.reporting.printable import printable_line

COLUMNS = ("group", "kind", "bits", "elements", "trace ± error", "response at 2", "response at 4")


def make_grid(count, name="bert.encoder.layer.{}.attention.self.query.weight"):
    rows = []
    for index in range(count):
        cells = ("weight", str(2 + index % 2), f"{1000 + index:,}", "0.1234 ± 0.01", "0.5", f"{index}.25")
        rows.append(Row(name.format(index), cells))
    return Grid(COLUMNS, tuple(rows), "layers", "a caption")


def shown(grid, width=80, form=Format.TABLE, **options):
    return table_text(grid, form, width, **options)


@pytest.mark.parametrize("width", [40, 80, 160])
@pytest.mark.parametrize("name", ["bert.layer.{}.query.weight", "模型.层.{}" + "名" * 60, "x{}[/x]\u202e"])
def test_no_line_is_wider_than_the_terminal_and_every_name_can_be_told(width, name):
    text = shown(make_grid(12, name), width)
    table = [line for line in text.splitlines() if not line.startswith(("(", "a caption"))]
    assert max(map(cell_len, table)) <= width
    ends = {printable_line(name.format(index)).split(".", 1)[-1][-4:] for index in range(12)}
    assert all(end in text for end in ends)


def test_what_repeats_is_said_once_and_wide_says_everything():
    text = shown(make_grid(12))
    assert "(names below bert.encoder.layer; kind: weight; trace ± error: 0.1234 ± 0.01" in text
    assert "\n7.attention.self.query.weight" in text
    assert text.count("weight;") == 1
    wide = shown(make_grid(12), wide=True)
    assert wide.count("bert.encoder.layer.") == 12
    assert "kind" in wide.splitlines()[1]


def test_rows_of_repeated_blocks_that_say_the_same_are_one():
    rows = [Row(f"layers.{index}.q.weight", ("weight", "4" if index < 90 else "3")) for index in range(100)]
    rows.append(Row("head.weight", ("weight", "8")))
    text = shown(Grid(("group", "kind", "bits"), tuple(rows)))
    assert [line.split() for line in text.splitlines()[3:6]] == [
        ["layers.{0-89}.q.weight", "4"],
        ["layers.{90-99}.q.weight", "3"],
        ["head.weight", "8"],
    ]


def test_other_forms_hold_every_cell():
    grid = Grid(("a", "b|c"), (Row("x,y", ("1|2",)), Row("z", ('"',))))
    (_, _, row) = shown(Grid(("a",), (Row("<b>*[x](y)`", ()),)), form=Format.MARKDOWN).splitlines()
    assert row == r"| \<b>\*\[x](y)\` |", "no name is markup"
    read = list(csv.reader(io.StringIO(shown(grid, form=Format.CSV))))
    assert read == [["a", "b|c"], ["x,y", "1|2"], ["z", '"']]
    lines = shown(grid, form=Format.MARKDOWN).splitlines()
    assert lines == [r"| a | b\|c |", "|---|---|", r"| x,y | 1\|2 |", '| z | " |']
    rows = json.loads(shown(grid, form=Format.JSON))
    assert rows == [{"a": "x,y", "b|c": "1|2"}, {"a": "z", "b|c": '"'}]


def test_what_does_not_fit_goes_below_without_rows_that_say_nothing_there():
    rows = [Row(f"layer{n}.weight", ("long" * 5 + str(n), "x" * 20 if n == 1 else "–")) for n in range(3)]
    text = shown(Grid(("name", "first", "second"), tuple(rows)), 40)
    above, below = text.strip().split("\n\n")
    assert [line.split()[0] for line in above.splitlines()[2:]] == [row.name for row in rows]
    assert [line.split()[0] for line in below.splitlines()[2:]] == ["layer1.weight"]
