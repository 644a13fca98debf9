"""A pool of Ray actors that each hold one replica.

The driver owns the fleet: Ray restarts no actor and retries no call. A dead worker is replaced and its
units run again; since a unit's answer depends only on its arguments, the results are the same as if
nothing had died.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
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
from raysearch.cluster.messages import portion
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
from raysearch.errors import ConfigError, PoolError, RaysearchError, TaskError, UnitError

_log = logging.getLogger(__name__)

IDLE_SECONDS = 30.0
"""After which a worker that has nothing to do is given back to a cluster that others use too."""

_GROW_SECONDS = 5.0
"""How often it is looked whether the cluster has room for more workers than were asked for."""

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
    busy: float
    looked: float
    unit_seconds: float = 0.0
    suspects: set[Key] = field(default_factory=set)
    blame: Counter[Key] = field(default_factory=Counter)
    deaths: int = 0
    num_finished: int = 0
    finished: deque[tuple[Key, UnitValue]] = field(default_factory=deque)


def _silent(text: str) -> None:
    """Tell nobody."""


class RayPool:
    """Runs units on Ray actors, with a bounded number in flight, and replaces actors that die.

    When a worker dies or a unit takes too long, the worker is killed and all its units run again; only
    the one it was working on is blamed. A blamed unit then runs alone on its worker, so that the next
    death is certainly its own; so do units that were on their way in one message with it.

    Units that are short beside what the driver does for each travel several in a message, see `portion`.

    Work begins with the first worker; those that the cluster has no room for yet are waited for as long as
    work is left. Workers with nothing to do are given back after `idle_seconds`, within a run and between
    two, and asked for again by the next.

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
        idle_seconds: float | None = None,
        tell: Callable[[str], None] = _silent,
        clock: Clock = time.monotonic,
    ) -> None:
        """Ship the replica and ask Ray for the workers, without waiting for them.

        Args:
            replica: the first argument of every unit; each worker holds a private copy on the CPU.
            settings: how many workers, what each has, and for how long it is waited.
            depth: units in flight per worker; with 2 a worker never waits for the driver.
            tolerance: how many losses a run survives.
            idle_seconds: after which workers with nothing to do are given back; None keeps them.
            tell: is given what a run without a worker waits for, and "" when it has one.
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
        self._startup_timeout = settings.startup_timeout_seconds
        self._max_unit_retries = tolerance.unit_retries
        self._max_deaths = settings.num_workers + tolerance.deaths
        self._idle_seconds = idle_seconds
        self._tell = tell
        self._told = ""
        self._clock = clock
        self._num_batches = 0
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
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
        self._give_back_later()

    def close(self) -> None:
        """See `Pool.close`; kills the workers, whatever they are doing."""
        self._num_batches += 1
        self._keep()
        with self._lock:
            self._fleet.close()

    def _start(
        self, function: UnitFunction, units: Mapping[Key, tuple[Any, ...]], shared: tuple[Any, ...]
    ) -> _Batch:
        if self._fleet.is_closed:
            raise PoolError("the pool is closed; make a new one")
        call_ref = ray.put(dumps((function, tuple(shared)), "(function, shared)"))
        self._num_batches += 1
        self._keep()
        with self._lock:
            self._fleet.muster()
        now = self._clock()
        return _Batch(self._num_batches, function, call_ref, units, deque(units), busy=now, looked=now)

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
            self._adapt(batch)
        except RaysearchError as error:
            return error
        return None

    def _adapt(self, batch: _Batch) -> None:
        """Ask for more workers, or give back those that have nothing to do; tell what is waited for."""
        now = self._clock()
        if batch.queue:
            batch.busy = now
            if now - batch.looked > _GROW_SECONDS:
                batch.looked = now
                if all(member.is_ready for member in self._fleet.members):
                    self._fleet.grow()
            self._tell_once(self._fleet.waits_for())
        elif self._idle_seconds is not None and now - batch.busy > self._idle_seconds:
            self._fleet.give_back()

    def _tell_once(self, text: str | None) -> None:
        if text is not None and text != self._told:
            self._told = text
            self._tell(text)

    def _give_back_later(self) -> None:
        """Give the workers back unless another run begins soon."""
        if self._idle_seconds is not None:
            self._timer = threading.Timer(self._idle_seconds, self._give_back, (self._num_batches,))
            self._timer.daemon = True
            self._timer.start()

    def _give_back(self, number: int) -> None:
        with self._lock:
            if number == self._num_batches and ray.is_initialized():
                self._fleet.give_back()

    def _keep(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

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
                    self._send(member, batch, self._next_keys(batch))

    def _next_keys(self, batch: _Batch) -> tuple[Key, ...]:
        """The units of the next message, taken from the queue; one that is suspected goes alone."""
        keys = [batch.queue.popleft()]
        if keys[0] in batch.suspects:
            return tuple(keys)
        workers = len(self._fleet.members)
        longest = self._unit_timeout / 10
        size = portion(len(batch.queue), workers * self._depth, workers, batch.unit_seconds, longest)
        while len(keys) < size and batch.queue[0] not in batch.suspects:
            keys.append(batch.queue.popleft())
        return tuple(keys)

    def _send(self, member: Member, batch: _Batch, keys: tuple[Key, ...]) -> None:
        try:
            arguments = dumps([tuple(batch.units[key]) for key in keys])
        except TaskError:
            for key in keys:
                dumps(tuple(batch.units[key]), f"the arguments of the unit {key}")
            raise
        ref = member.actor.run.remote(batch.number, batch.call_ref, keys, arguments)
        member.calls.append(Call(ref, keys, self._clock()))

    def _can_take(self, member: Member, batch: _Batch, key: Key) -> bool:
        if not member.is_ready:
            return False
        if key in batch.suspects:
            return not member.calls
        return not any(call.keys[0] in batch.suspects for call in member.calls)

    def _receive(self, member: Member, batch: _Batch, ready: set[ray.ObjectRef[Any]]) -> None:
        try:
            if not member.is_ready and member.ready_ref in ready:
                self._fleet.get_ready(member)
            # In the order they were sent: what a dead worker finished before it died is kept.
            while member.calls and member.calls[0].ref in ready:
                self._take(member, batch)
        except _WORKER_LOST as error:
            self._replace(member, batch, error)
            return
        except ActorUnschedulableError as error:
            raise self._fleet.nowhere_to_run(str(error)) from error
        if self._fleet.is_overdue(member):
            limit = self._unit_timeout if member.is_ready else self._startup_timeout
            if not batch.num_finished and not any(other.is_ready for other in self._fleet.members):
                raise self._fleet.nowhere_to_run(f"no worker was ready within {limit:g} seconds")
            self._replace(member, batch, TimeoutError(f"no answer in {limit:g} seconds"))

    def _take(self, member: Member, batch: _Batch) -> None:
        """Take in the answer to a worker's oldest call, and drop the call unless its worker died."""
        call = member.calls[0]
        error: RayTaskError | None = None
        values: list[UnitValue] = []
        seconds = 0.0
        try:
            values, seconds = ray.get(call.ref)
        except RayTaskError as task_error:
            error = task_error
        del member.calls[0]
        now = self._clock()
        if member.calls:
            # A queued unit starts when the one before it ends.
            member.calls[0].clock = now
        if error is None:
            self._finish(call, values, seconds, batch)
        elif isinstance(error.cause, RaysearchError):
            raise error.cause from error
        else:
            raise failed_unit(call.keys[0], batch.function, error.cause, str(error)) from error.cause

    def _finish(self, call: Call, values: list[UnitValue], seconds: float, batch: _Batch) -> None:
        """Take in the answers of a message; the unit that failed behind them goes first of the next one."""
        batch.queue.extendleft(reversed(call.keys[len(values) :]))
        each = seconds / len(values)
        # The last few messages say what a unit takes now.
        batch.unit_seconds = each if not batch.unit_seconds else 0.8 * batch.unit_seconds + 0.2 * each
        for key, value in zip(call.keys, values, strict=False):
            self._metrics.unit_done(function_name(batch.function), each)
            batch.finished.append((key, owned_value(key, value)))
        batch.num_finished += len(values)

    def _replace(self, member: Member, batch: _Batch, reason: Exception) -> None:
        """Kill a worker, queue its units again and put another in its place."""
        self._fleet.kill(member)
        self._metrics.worker_died(function_name(batch.function))
        keys = [key for call in member.calls for key in call.keys]
        batch.queue.extendleft(reversed(keys))
        batch.deaths += 1
        if getattr(reason, "actor_init_failed", False):
            raise PoolError(f"a worker could not be started: {reason}") from reason
        self._fleet.top_up()
        oldest = member.calls[0].keys if member.calls else ()
        _log.warning("a worker died (working on %s) and is replaced: %s", _named(oldest), reason)
        batch.suspects.update(oldest)
        if len(oldest) == 1:
            self._blame(oldest[0], batch, reason)
        # A long run on machines that come and go loses many workers: only deaths beyond its work count.
        if batch.deaths > self._max_deaths + batch.num_finished:
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


def _named(keys: tuple[Key, ...]) -> str:
    """One unit, or one of several, for messages."""
    if len(keys) > 1:
        return f"one of {len(keys)} units from {keys[0]} on"
    return str(keys[0]) if keys else "None"
