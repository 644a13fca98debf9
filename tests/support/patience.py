"""Time in tests: none is measured, so that no outcome depends on how busy the machine is.

What must come about is waited for without end, but for `HANG_SECONDS`, which only ends a test that would
never end. What must time out does so by a clock that the test moves on, never by waiting.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

HANG_SECONDS = 1800
"""Longer than anything here takes on the busiest machine."""
_STARTS = 5


def wait_until(is_so: Callable[[], object]) -> None:
    """Look again and again, until it is so."""
    deadline = time.monotonic() + HANG_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.1)


class SteppedClock:
    """A clock for pools: the machine's, but for the leaps that the test makes."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead

    def leap(self, seconds: float) -> None:
        """Let so much time have passed."""
        self.ahead += seconds


@contextlib.contextmanager
def started_ray(*arguments: Any, **options: Any) -> Iterator[Any]:
    """`ray_session`, tried again: Ray gives its own processes 30 seconds to start, on any machine."""
    from raysearch.cluster.session import ray_session
    from raysearch.errors import PoolError

    with contextlib.ExitStack() as stack:
        for attempt in range(1, _STARTS + 1):
            try:
                session = stack.enter_context(ray_session(*arguments, **options))
                break
            except PoolError:
                if attempt == _STARTS:
                    raise
        yield session
