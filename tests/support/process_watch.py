"""The processes that this one starts, noted as they start."""

from __future__ import annotations

import sys
from typing import Any

_EVENTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}


class ProcessWatch:
    """Python audits every start of a process, whichever library asks for it; a watch keeps what was started.

    Processes that `multiprocessing` spawns are not audited (Python 3.11).
    """

    def __init__(self) -> None:
        self._started: list[str] = []
        # A hook stays until the interpreter ends: one watch for all tests.
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        # The `platform` module asks once, for a moment, what processor this is.
        if event in _EVENTS and arguments[:1] != ("uname",):
            self._started.append(f"{event} {arguments[:2]}")

    def take(self) -> list[str]:
        """What was started since the last call."""
        started, self._started = self._started, []
        return started
