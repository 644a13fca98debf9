"""Text that others wrote, on a terminal: what would clear it, move its cursor or turn its lines is a code."""

from __future__ import annotations

import re
import textwrap

_COLOURS = re.compile(r"(\x1b\[[0-9;]*m)")
_LINE_ENDS = re.compile(r"\r\n?")
# All control characters but tab and line feed, and those that change the direction of what follows.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str, *, is_log: bool = False) -> str:
    r"""The text with control characters as their codes; what is written from right to left stays as it is.

    Args:
        text: of a task, a run's folder or an error.
        is_log: whether it may be coloured, and have lines that were written over.

    Example:
        >>> printable("conv[/x]\x1b[2J")
        'conv[/x]\\u001b[2J'
    """
    if not is_log:
        return _CONTROLS.sub(_code, text)
    parts = _COLOURS.split(_LINE_ENDS.sub("\n", text))
    # Every second part is a colour.
    parts[::2] = [_CONTROLS.sub(_code, part) for part in parts[::2]]
    return "".join(parts)


def printable_line(text: str) -> str:
    """The same in one line, for a cell of a table."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def wrapped(text: str, width: int) -> str:
    """Sentences broken between words; a word that is longer than a line, as a path may be, stays whole.

    Args:
        text: one or several lines, each of which is broken by itself; one that is indented, as a command to
            paste is, stays whole.
        width: of the terminal.
    """
    wrapper = textwrap.TextWrapper(
        width, expand_tabs=False, replace_whitespace=False, break_long_words=False, break_on_hyphens=False
    )
    lines = text.splitlines()
    return "\n".join(line if line.startswith(" ") else wrapper.fill(line) for line in lines)


def _code(character: re.Match[str]) -> str:
    return f"\\u{ord(character[0]):04x}"
