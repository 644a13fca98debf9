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
        """Keep one finished unit; when this returns, it survives a crash.

        Args:
            stage: the part of a run that the unit belongs to.
            key: the unit's, unique within the stage.
            value: what the unit answered.
        """
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
            on_progress: called with (units done, units asked for) at the start of a run and after each
                unit; both count all runs of this pool, so a stage that works in rounds does not begin anew.
        """
        self._inner = inner
        self._log = log
        self._stage = stage
        self._on_progress = on_progress
        self._is_read = False
        # Read from the log and not handed out yet.
        self._logged: dict[Key, UnitValue] = {}
        self._finished: set[Key] = set()
        self._requested: set[Key] = set()

    def run(
        self, function: UnitFunction, units: Mapping[Key, tuple[Any, ...]], shared: tuple[Any, ...] = ()
    ) -> Iterator[tuple[Key, UnitValue]]:
        """See `Pool.run`; logged units come first, in the order of `units`.

        The log is read by the first run; again only if a unit is asked for that was handed out before.
        """
        self._read(units)
        self._requested |= units.keys()
        missing = {key: arguments for key, arguments in units.items() if key not in self._finished}
        self._report()
        for key in units:
            if key not in missing:
                yield key, self._logged.pop(key)
        if not missing:
            return
        for key, value in self._inner.run(function, missing, shared):
            self._log.append(self._stage, key, value)
            self._finished.add(key)
            self._report()
            yield key, value

    def _read(self, units: Mapping[Key, tuple[Any, ...]]) -> None:
        # What was handed out is not kept here: the rows of a stage may be larger than memory.
        was_handed_out = self._finished - self._logged.keys()
        if not self._is_read or not was_handed_out.isdisjoint(units):
            self._logged = dict(self._log.read(self._stage))
            self._finished = set(self._logged)
            self._is_read = True

    def _report(self) -> None:
        self._on_progress(len(self._requested & self._finished), len(self._requested))

    def close(self) -> None:
        """See `Pool.close`; closes the inner pool, not the log."""
        self._inner.close()
