"""The log of a run's driver, in the run's folder: one JSON object a line, one line an event."""

from __future__ import annotations

import json
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from raysearch.artifacts.bulletin import Bulletin
from raysearch.artifacts.run_store import RunStore
from raysearch.errors import StorageError

DRIVER_LOG = "driver.log"


class DriverLog(logging.Handler):
    """Keeps what the package logs: stages, remarks, workers that die and are replaced, warnings.

    In a local folder every line is appended at once. To an object store, which has no appending, the whole
    log is written now and then and when the run ends, see `Bulletin`. A storage that does not answer loses
    lines of the log and ends no run.

    Args:
        store: of the run; a log that is there goes on.
    """

    def __init__(self, store: RunStore) -> None:
        super().__init__(logging.INFO)
        self._storage = store.storage
        self._text = ""
        self._bulletin = Bulletin(store.storage, DRIVER_LOG)
        if not self._storage.is_local:
            with suppress(StorageError):
                self._text = self._storage.read_bytes(DRIVER_LOG).decode(errors="replace")

    def emit(self, record: logging.LogRecord) -> None:
        """Add one line: time (UTC), level, where it comes from, and the message."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry = {"time": when, "level": record.levelname.lower(), "source": record.name}
        line = json.dumps(entry | {"message": record.getMessage()}) + "\n"
        if self._storage.is_local:
            with suppress(OSError), self._storage.local_path(DRIVER_LOG).open("a") as file:
                file.write(line)
            return
        self._text += line
        self._bulletin.write(self._text.encode())

    def close(self) -> None:
        """Write what is not written yet."""
        self._bulletin.close()
        super().close()


@contextmanager
def driver_log(store: RunStore) -> Iterator[None]:
    """Log into a run's folder while its driver works; the loggers and warnings are put back afterwards."""
    logger = logging.getLogger("raysearch")
    handler = DriverLog(store)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(logging.INFO, logger.getEffectiveLevel()))
    try:
        with _warnings_too(logger):
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


@contextmanager
def _warnings_too(logger: logging.Logger) -> Iterator[None]:
    """Warnings that are shown are logged as well, each by the handlers of the package alone."""
    # Other threads may set it too; the main thread's word is the one that is put back.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        for handler in logger.handlers:
            text = f"{category.__name__}: {message}"
            handler.handle(logger.makeRecord("raysearch", logging.WARNING, "", 0, text, (), None))
        shown(message, category, *place, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown


def readable(text: str) -> str:
    r"""The log as lines for a person: local time, level where it is more than information, message.

    What is no entry, such as the end of a line that is still written, stays as it is.

    Example:
        >>> readable('{"time": "no time", "level": "warning", "message": "low on memory"}\n')
        'no time  warning: low on memory\n'
    """
    return "".join(_readable_line(line) for line in text.splitlines(keepends=True))


def _readable_line(line: str) -> str:
    try:
        entry = json.loads(line)
        when, level, message = entry["time"], entry["level"], entry["message"]
    except (ValueError, TypeError, KeyError):
        return line
    with suppress(ValueError, TypeError):
        when = datetime.fromisoformat(when).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    prefix = "" if level == "info" else f"{level}: "
    return f"{when}  {prefix}{message}\n"
