"""Code of the user's, run where it may fail: what it raises is told as an error of the task."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from raysearch.errors import RaysearchError, TaskError

_OTHERS = ("site-packages", "dist-packages", str(Path(__file__).parents[1]))


@contextmanager
def user_code(what: str, advice: str = "") -> Iterator[None]:
    """Turn what the user's code raises into an error that says what was tried, where, and what to do.

    Args:
        what: the subject of the sentence, such as "the task's loss".
        advice: what to do, a sentence.

    Raises:
        TaskError: something was raised that is no error of raysearch's own.
    """
    try:
        yield
    except RaysearchError:
        raise
    except (Exception, SystemExit) as error:
        raise failed(what, advice, error) from error


def failed(what: str, advice: str, error: BaseException) -> TaskError:
    """The error that says what was tried, where in the user's code it failed, and what to do.

    Args:
        what: the subject of the sentence.
        advice: what to do, a sentence.
        error: what was raised.
    """
    text = str(error).strip().split("\n", 1)[0].rstrip(".")
    place = _place(error.__traceback__)
    return TaskError(f"{what} failed{place}: {type(error).__name__}: {text}. {advice}".strip())


def _place(trace: TracebackType | None) -> str:
    """The innermost line that is neither torch's nor ours."""
    for frame in reversed(traceback.extract_tb(trace)):
        if not any(part in frame.filename for part in _OTHERS) and not frame.filename.startswith("<"):
            return f" at {Path(frame.filename).name}:{frame.lineno}"
    return ""
