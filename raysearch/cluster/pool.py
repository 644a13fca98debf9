"""The pool protocol, and the reference that every other pool must equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from raysearch.errors import RaysearchError, UnitError

Key = tuple[str | int, ...]
"""Names a unit within its stage; its `repr` is stable, so seeds and files can be made from it."""

UnitValue = Mapping[str, np.ndarray]
"""What a unit answers: named arrays, so that it can be kept on disk without pickle."""

UnitFunction = Callable[..., UnitValue]
"""`function(replica, *shared, *arguments)`: a module-level function, so that workers can import it."""


class Pool(Protocol):
    """Runs units of work on workers that each hold one replica.

    A unit's size and key never depend on the number of workers. Units finish in any order; whoever
    reduces them does so in key order. Then the answer is the same on any pool.
    """

    def run(
        self, function: UnitFunction, units: Mapping[Key, tuple[Any, ...]], shared: tuple[Any, ...] = ()
    ) -> Iterator[tuple[Key, UnitValue]]:
        """Yield (key, value) of every unit once, in the order they finish.

        Args:
            function: called as `function(replica, *shared, *arguments)`.
            units: key → arguments.
            shared: arguments common to all units, shipped to each worker once per call.

        Raises:
            UnitError: a unit raised, or its worker died too often; the message names the key.
            PoolError: the workers cannot be started or kept alive.
        """
        ...

    def close(self) -> None:
        """Release the workers; the pool cannot be used afterwards."""
        ...


class LocalPool:
    """One replica in this process, units one after another in the order given: the reference."""

    def __init__(self, replica: Any) -> None:
        self._replica = replica

    def run(
        self, function: UnitFunction, units: Mapping[Key, tuple[Any, ...]], shared: tuple[Any, ...] = ()
    ) -> Iterator[tuple[Key, UnitValue]]:
        """See `Pool.run`."""
        for key, arguments in units.items():
            try:
                value = function(self._replica, *shared, *arguments)
            except RaysearchError:
                raise
            except Exception as error:
                raise UnitError(f"the unit {key} of {function.__name__} failed: {error!r}") from error
            yield key, value

    def close(self) -> None:
        """See `Pool.close`; nothing to release."""
