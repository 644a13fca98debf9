"""What became of each damaged input, and how long it took."""

from __future__ import annotations

import collections
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from raysearch.errors import RaysearchError

SLOW_SECONDS = 5.0
"""Of the processor, which no other process of the machine takes away."""


def _too_long(*_: object) -> None:
    # No Exception: what is looked for may catch those of its user's.
    raise Endless(f"more than {4 * SLOW_SECONDS:g} seconds")


class Endless(BaseException):
    """What was tried does not end."""


@dataclass
class Tally:
    """Counts of outcomes by kind of input.

    Attributes:
        counts: (kind, outcome) → number; outcomes are "named" (an error of raysearch), "read", and "escaped".
        escaped: what else came out, for the one who mends it.
        slowest: kind → the most CPU seconds that one input took.
    """

    counts: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    escaped: list[str] = field(default_factory=list)
    slowest: dict[str, float] = field(default_factory=dict)

    def take(self, kind: str, shown: str, action: Callable[[], Any]) -> Any:
        """Do something with an input and count what came of it; gives what the action gave, or None.

        Args:
            kind: of input.
            shown: the input, for the one who looks for it.
            action: reads it.
        """
        began = time.process_time()
        value = None
        previous = signal.signal(signal.SIGPROF, _too_long)
        signal.setitimer(signal.ITIMER_PROF, 4 * SLOW_SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = action()
            outcome = "read"
        except RaysearchError:
            outcome = "named"
        except (Exception, SystemExit, Endless) as error:
            outcome = "escaped"
            places = [
                f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)
            ]
            ours = [place for place in places if "/raysearch/raysearch/" in place or "/raysearch/" in place]
            self.escaped.append(
                f"{kind}, {shown:.150}: {type(error).__name__}: {error!s:.150} at {ours[-1:]}"
            )
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, previous)
        seconds = time.process_time() - began
        self.slowest[kind] = max(seconds, self.slowest.get(kind, 0.0))
        if seconds > SLOW_SECONDS:
            self.escaped.append(f"{kind}, {shown:.150}: {seconds:.1f} seconds")
        self.counts[kind, outcome] += 1
        return value

    def add(self, other: Tally) -> None:
        """Take over what another tally counted."""
        self.counts.update(other.counts)
        self.escaped += other.escaped
        for kind, seconds in other.slowest.items():
            self.slowest[kind] = max(seconds, self.slowest.get(kind, 0.0))
