import json

import pytest

from raysearch.cli.console import PlainConsole, out, show_grid
from raysearch.cli.tables import Format
from raysearch.reporting.grids import Grid, Row
from raysearch.reporting.printable import printable, printable_line, wrapped

CLEARS = "conv\x1b[2J[/x]<b>\u202eevil\nsecond\x9b1m"


@pytest.mark.parametrize("form", list(Format))
def test_a_name_in_a_table_moves_nothing_on_the_screen(capsys, form):
    grid = Grid(("name", "value"), tuple(Row(CLEARS, (f"{place}\x07",)) for place in range(3)))
    show_grid(out(), grid, form)
    text = capsys.readouterr().out
    assert not set(text) & set("\x1b\x07\x9b\u202e")
    assert (r"\[/x]\<b>" if form is Format.MARKDOWN else "[/x]<b>") in text
    if form is Format.JSON:
        assert json.loads(text)[0]["name"] == CLEARS
    if form in (Format.TABLE, Format.MARKDOWN):
        assert "evil\nsecond" not in text


def test_a_line_of_text_is_as_it_was_but_for_control_characters(capsys):
    PlainConsole().print(f"note: {CLEARS}, مرحبا 模型 é\t|")
    shown = capsys.readouterr().out
    assert shown.startswith("note: conv\\u001b[2J[/x]<b>\\u202eevil\nsecond\\u009b1m, مرحبا 模型 é")


def test_a_log_keeps_its_colours_and_ends_lines_that_were_written_over():
    text = "\x1b[36m(pid=1)\x1b[0m 10 %\r20 %\r\nend\x1b]0;title\x07"
    assert printable(text, is_log=True) == "\x1b[36m(pid=1)\x1b[0m 10 %\n20 %\nend\\u001b]0;title\\u0007"
    assert printable_line("a\nb\tc") == "a\\nb\\tc"


def test_sentences_break_between_words_and_commands_not_at_all():
    command = "  raysearch run task.py:make --budget 'avg_bits<=4' --resume"
    path = "/runs/" + "long-" * 6
    text = wrapped(f"it was stopped and goes on with\n{command}\n{path} is there", 20)
    assert text.split("\n") == ["it was stopped and", "goes on with", command, path, "is there"]
