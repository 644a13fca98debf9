"""The pool protocol, and the reference that every other pool must equal."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from raysearch.determinism import reproducible
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

        The arrays of a value are writable and belong to the caller. An error that is a
        `RaysearchError` leaves a unit as it is; any other becomes a `UnitError` caused by it.

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

    def __init__(self, replica: Any, *, deterministic: bool = True) -> None:
        """Take the replica as it is.

        Args:
            replica: the first argument of every unit.
            deterministic: see `raysearch.determinism.set_reproducible`, which holds during each unit only.
        """
        self._replica = replica
        self._deterministic = deterministic

    def run(
        self, function: UnitFunction, units: Mapping[Key, tuple[Any, ...]], shared: tuple[Any, ...] = ()
    ) -> Iterator[tuple[Key, UnitValue]]:
        """See `Pool.run`."""
        for key, arguments in units.items():
            try:
                with reproducible(self._deterministic):
                    value = function(self._replica, *shared, *arguments)
            except RaysearchError:
                raise
            except Exception as error:
                raise failed_unit(key, function, error) from error
            yield key, owned_value(key, value)

    def close(self) -> None:
        """See `Pool.close`; nothing to release."""


def in_order(
    answers: Iterator[tuple[Key, UnitValue]], keys: Iterable[Key]
) -> Iterator[tuple[Key, UnitValue]]:
    """The answers of units in the order of their keys, each as soon as those before it are there."""
    early: dict[Key, UnitValue] = {}
    waiting = deque(keys)
    for key, value in answers:
        early[key] = value
        while waiting and waiting[0] in early:
            yield waiting[0], early.pop(waiting.popleft())


def failed_unit(key: Key, function: UnitFunction, error: BaseException, details: str = "") -> UnitError:
    """The error of a unit whose function raised `error`.

    Args:
        key: the unit's key.
        function: what was called.
        error: what it raised.
        details: the traceback, where `error` has lost its own on the way here.
    """
    name = function_name(function)
    text = f"the unit {key} of {name} failed: {error!r}"
    if "does not have a deterministic implementation" in str(error):
        text += (
            ". Set cluster.deterministic=false to allow this operation: the run may then give other last "
            "digits each time, or on another number of workers"
        )
    if "CUBLAS_WORKSPACE_CONFIG" in str(error):
        text += (
            ". Something was multiplied on a GPU in this process before raysearch was imported: import it "
            "first, or set CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment"
        )
    return UnitError(text + (details and f"\n{details}"))


def function_name(function: UnitFunction) -> str:
    """What a unit function is called in messages and metrics."""
    return str(getattr(function, "__qualname__", repr(function)))


def owned_value(key: Key, value: Any) -> dict[str, np.ndarray]:
    """Copy what a unit answered into arrays that nothing else refers to.

    Args:
        key: the unit's key, for the message.
        value: what the unit's function returned.

    Raises:
        UnitError: `value` is no mapping of names to arrays, or an array holds Python objects.
    """
    if not isinstance(value, Mapping):
        raise UnitError(
            f"the unit {key} answered a {type(value).__name__}; a unit answers a mapping of names to "
            "numpy arrays: return {'name': array}"
        )
    for name, array in value.items():
        is_plain = isinstance(array, np.ndarray | np.generic) and not array.dtype.hasobject
        if not (isinstance(name, str) and is_plain):
            raise UnitError(
                f"the unit {key} answered {name!r} as {type(array).__name__}; a unit answers a mapping "
                "of names to numpy arrays of numbers or strings: use `tensor.numpy()` or `np.asarray`"
            )
    return {name: np.array(array) for name, array in value.items()}
