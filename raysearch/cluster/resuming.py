"""A pool that remembers: units that are already in a log are read instead of computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from raysearch.cluster.pool import Key, Pool, UnitFunction, UnitValue


class UnitLog(Protocol):
    """Where finished units of a stage are kept between processes."""

    def read(self, stage: str) -> dict[Key, UnitValue]:
        """The finished units of `stage`."""
        ...

    def append(self, stage: str, key: Key, value: UnitValue) -> None:
        """Keep one finished unit of `stage`; when this returns, it survives a crash."""
        ...


class ResumingPool:
    """Runs on another pool what a log does not hold yet, and logs each unit as it finishes.

    A key must mean the same work in every call of a stage: a value is looked up by stage and key alone.
    Whether a log belongs to this model and data is decided by whoever opens it.
    """

    def __init__(
        self, inner: Pool, log: UnitLog, stage: str, on_progress: Callable[[int, int], None]
    ) -> None:
        """Wrap a pool.

        Args:
            inner: computes the missing units.
            log: holds the finished ones.
            stage: the name under which they are kept.
            on_progress: called with (units done, units in all) at the start of a run and after each unit.
        """
        self._inner = inner
        self._log = log
        self._stage = stage
        self._on_progress = on_progress

    def run(
        self, function: UnitFunction, units: Mapping[Key, tuple[Any, ...]], shared: tuple[Any, ...] = ()
    ) -> Iterator[tuple[Key, UnitValue]]:
        """See `Pool.run`; logged units come first, in the order of `units`."""
        logged = {key: value for key, value in self._log.read(self._stage).items() if key in units}
        missing = {key: arguments for key, arguments in units.items() if key not in logged}
        done = len(logged)
        self._on_progress(done, len(units))
        for key in units:
            if key in logged:
                yield key, logged[key]
        if not missing:
            return
        for key, value in self._inner.run(function, missing, shared):
            self._log.append(self._stage, key, value)
            done += 1
            self._on_progress(done, len(units))
            yield key, value

    def close(self) -> None:
        """See `Pool.close`; closes the inner pool, not the log."""
        self._inner.close()
