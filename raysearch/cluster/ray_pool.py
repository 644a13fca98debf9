"""A pool of Ray actors that each hold one replica.

The driver owns the fleet: Ray restarts no actor and retries no call. A dead worker is replaced and its
units run again; since a unit's answer depends only on its arguments, the results are the same as if
nothing had died.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import (
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from raysearch.cluster.fleet import Call, Clock, Fleet, FleetSettings, Member
from raysearch.cluster.metrics import FleetMetrics
from raysearch.cluster.pool import (
    Key,
    UnitFunction,
    UnitValue,
    failed_unit,
    function_name,
    owned_value,
)
from raysearch.cluster.shipping import dumps
from raysearch.errors import ConfigError, PoolError, RaysearchError, UnitError

_log = logging.getLogger(__name__)

# OutOfMemoryError is no RayActorError: it is what a worker killed by Ray's memory monitor leaves behind.
# ObjectLostError: the answer was ready, but its node died before the driver fetched it.
_WORKER_LOST = (RayActorError, OutOfMemoryError, WorkerCrashedError, NodeDiedError, ObjectLostError)


@dataclass(frozen=True)
class Tolerance:
    """What a run survives.

    Attributes:
        unit_retries: how often a unit that lost its worker runs again.
        deaths: how many workers may die during one run, beside one death of each: a node takes all of its
            workers along.
    """

    unit_retries: int = 2
    deaths: int = 8


@dataclass
class _Batch:
    """The state of one `run` call."""

    number: int
    function: UnitFunction
    call_ref: ray.ObjectRef[Any]
    units: Mapping[Key, tuple[Any, ...]]
    queue: deque[Key]
    blame: Counter[Key] = field(default_factory=Counter)
    deaths: int = 0
    finished: deque[tuple[Key, UnitValue]] = field(default_factory=deque)


class RayPool:
    """Runs units on Ray actors, with a bounded number in flight, and replaces actors that die.

    When a worker dies or a unit takes too long, the worker is killed and all its units run again; only
    the one it was working on is blamed. A blamed unit then runs alone on its worker, so that the next
    death is certainly its own. While some workers run, others that cannot be placed are given up with a
    warning.

    One `run` at a time: starting another abandons the one before, and replaces the workers that are
    still busy with it.
    """

    def __init__(
        self,
        replica: Any,
        settings: FleetSettings,
        *,
        depth: int = 2,
        tolerance: Tolerance = Tolerance(),
        clock: Clock = time.monotonic,
    ) -> None:
        """Ship the replica and ask Ray for the workers, without waiting for them.

        Args:
            replica: the first argument of every unit; each worker holds a private copy on the CPU.
            settings: how many workers, what each has, and for how long it is waited.
            depth: units in flight per worker; with 2 a worker never waits for the driver.
            tolerance: how many losses a run survives.
            clock: seconds since some moment, by which timeouts are judged.

        Raises:
            ConfigError: there is no worker, or no unit in flight.
            PoolError: Ray has not been started in this process.
            TaskError: the replica cannot be shipped.
        """
        for name, value in (("cluster.workers", settings.num_workers), ("depth", depth)):
            if value < 1:
                raise ConfigError(f"{name} is {value}; a pool of actors needs at least 1")
        if not ray.is_initialized():
            raise PoolError(
                "Ray is not running in this process; make the pool inside `with ray_session(...)`"
            )
        self._depth = depth
        self._unit_timeout = settings.unit_timeout_seconds
        self._max_unit_retries = tolerance.unit_retries
        self._max_deaths = settings.num_workers + tolerance.deaths
        self._clock = clock
        self._num_batches = 0
        self._metrics = FleetMetrics()
        self._fleet = Fleet(replica, settings, clock)

    def run(
        self, function: UnitFunction, units: Mapping[Key, tuple[Any, ...]], shared: tuple[Any, ...] = ()
    ) -> Iterator[tuple[Key, UnitValue]]:
        """See `Pool.run`; `function` may be any that cloudpickle can pickle."""
        batch = self._start(function, units, shared)
        left = len(units)
        while left:
            error = self._advance(batch)
            while batch.finished:
                left -= 1
                yield batch.finished.popleft()
                if batch.number != self._num_batches:
                    raise PoolError(
                        "another run was started on this pool, or it was closed, before this ended"
                    )
            if error is not None:
                raise error

    def close(self) -> None:
        """See `Pool.close`; kills the workers, whatever they are doing."""
        self._num_batches += 1
        self._fleet.close()

    def _start(
        self, function: UnitFunction, units: Mapping[Key, tuple[Any, ...]], shared: tuple[Any, ...]
    ) -> _Batch:
        if self._fleet.is_closed:
            raise PoolError("the pool is closed; make a new one")
        call_ref = ray.put(dumps((function, tuple(shared)), "(function, shared)"))
        self._num_batches += 1
        self._fleet.muster()
        return _Batch(self._num_batches, function, call_ref, units, deque(units))

    def _advance(self, batch: _Batch) -> RaysearchError | None:
        """Hand out units, wait for news and take them in; an error that ends the run is returned.

        It is not raised, so that units which finished before it still reach the caller.
        """
        try:
            self._fill(batch)
            ready = self._fleet.wait()
            for member in list(self._fleet.members):
                self._receive(member, batch, ready)
            self._fill(batch)
        except RaysearchError as error:
            return error
        return None

    def _fill(self, batch: _Batch) -> None:
        """Hand out units, to the workers with the fewest first; one look at each worker per load.

        The last ones, as many as there are workers, wait for a worker with nothing else to do: queued behind
        another unit they would leave a worker idle that is done, or ready, a moment later.
        """
        for load in range(self._depth):
            for member in self._fleet.members:
                if len(batch.queue) <= (len(self._fleet.members) if load else 0):
                    return
                if len(member.calls) == load and self._can_take(member, batch, batch.queue[0]):
                    self._send(member, batch, batch.queue.popleft())

    def _send(self, member: Member, batch: _Batch, key: Key) -> None:
        arguments = dumps(tuple(batch.units[key]), f"the arguments of the unit {key}")
        ref = member.actor.run.remote(batch.number, batch.call_ref, key, arguments)
        member.calls.append(Call(ref, key, self._clock()))

    def _can_take(self, member: Member, batch: _Batch, key: Key) -> bool:
        if not member.is_ready:
            return False
        if batch.blame[key]:
            return not member.calls
        return not any(batch.blame[call.key] for call in member.calls)

    def _receive(self, member: Member, batch: _Batch, ready: set[ray.ObjectRef[Any]]) -> None:
        try:
            if not member.is_ready and member.ready_ref in ready:
                ray.get(member.ready_ref)
                member.is_ready = True
            # In the order they were sent: what a dead worker finished before it died is kept.
            while member.calls and member.calls[0].ref in ready:
                self._take(member, batch)
        except _WORKER_LOST as error:
            self._replace(member, batch, error)
            return
        except ActorUnschedulableError as error:
            raise self._fleet.nowhere_to_run(str(error)) from error
        if self._fleet.is_overdue(member):
            if member.is_ready:
                self._replace(member, batch, TimeoutError(f"no answer in {self._unit_timeout:g} seconds"))
            else:
                self._fleet.give_up(member)

    def _take(self, member: Member, batch: _Batch) -> None:
        """Take in the answer to a worker's oldest call, and drop the call unless its worker died."""
        call = member.calls[0]
        error: RayTaskError | None = None
        try:
            value = ray.get(call.ref)
        except RayTaskError as task_error:
            error = task_error
        del member.calls[0]
        now = self._clock()
        if member.calls:
            # A queued unit starts when the one before it ends.
            member.calls[0].clock = now
        if error is None:
            self._metrics.unit_done(function_name(batch.function), now - call.clock)
            batch.finished.append((call.key, owned_value(call.key, value)))
        elif isinstance(error.cause, RaysearchError):
            raise error.cause from error
        else:
            raise failed_unit(call.key, batch.function, error.cause, str(error)) from error.cause

    def _replace(self, member: Member, batch: _Batch, reason: Exception) -> None:
        """Kill a worker, queue its units again and put another in its place."""
        self._fleet.kill(member)
        self._metrics.worker_died(function_name(batch.function))
        batch.queue.extendleft(call.key for call in reversed(member.calls))
        batch.deaths += 1
        if getattr(reason, "actor_init_failed", False):
            raise PoolError(f"a worker could not be built from the replica: {reason}") from reason
        self._fleet.top_up()
        oldest = member.calls[0].key if member.calls else None
        _log.warning("a worker died (working on %s) and is replaced: %s", oldest, reason)
        if oldest is not None:
            self._blame(oldest, batch, reason)
        if batch.deaths > self._max_deaths:
            raise PoolError(
                f"{batch.deaths} workers died in one run, more than {self._max_deaths}; the last: {reason}. "
                "Look at the memory and the Ray logs of the nodes, or use fewer workers"
            ) from reason

    def _blame(self, key: Key, batch: _Batch, reason: Exception) -> None:
        batch.blame[key] += 1
        if batch.blame[key] > self._max_unit_retries:
            raise UnitError(
                f"the unit {key} lost its worker {batch.blame[key]} times (retries: "
                f"{self._max_unit_retries}); the last time: {reason}. Look for memory or native code "
                "that fails in this unit, or raise cluster.unit_timeout_seconds if it is only slow"
            ) from reason
