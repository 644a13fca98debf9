"""Standard output kept free of what a solver prints by itself."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """Keep what HiGHS prints by itself (scipy 1.17, HiGHS #2783) off our standard output, which may be JSON.

    It writes to the file descriptor, so that is turned away; one solver at a time, since it is the
    process's.
    """
    with _ONE_AT_A_TIME:
        try:
            sys.stdout.flush()
            _flush_c()
            saved = os.dup(1)
        except (OSError, ValueError, AttributeError):
            yield  # there is no standard output
            return
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
            yield
        finally:
            _flush_c()
            os.dup2(saved, 1)
            os.close(saved)


def _flush_c() -> None:
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).fflush(None)
