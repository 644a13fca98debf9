"""The actors of a pool: plain worker, the driver's view of each, and their birth and death."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import ray
import torch
from ray.exceptions import RayTaskError

from raysearch.cluster.pool import Key, UnitFunction, owned_value
from raysearch.cluster.room import Room
from raysearch.cluster.shipping import Shipment, dumps, loads
from raysearch.determinism import pin_threads, set_reproducible
from raysearch.errors import PoolError, RaysearchError

_POLL_SECONDS = 1.0
_LOOK_SECONDS = 1.0
"""How often a fleet without a worker looks at what the cluster has."""

SHARE_OF_MEMORY = 0.9
"""Of the part of a GPU's memory that an actor asked for; the rest is what CUDA takes for each process."""

Answers = tuple[list[dict[str, np.ndarray]], float]
"""Of a message: the values of its first units, as far as none failed, and the seconds they took."""

Clock = Callable[[], float]
"""Seconds since some moment, as `time.monotonic` counts them."""


class ReplicaWorker:
    """Holds one replica and runs units on it; `Fleet` makes actors of it."""

    def __init__(self, threads: int, deterministic: bool, num_gpus: float) -> None:
        # Ray derives the number from the CPUs an actor asks for, and results may depend on it.
        pin_threads(threads)
        if not num_gpus:
            # Ray leaves all GPUs in sight of an actor that asked for none; they are other actors'.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        elif num_gpus < 1 and torch.cuda.is_available():
            # Its own share, so that what fits does not depend on what the others on the GPU do just then.
            torch.cuda.set_per_process_memory_fraction(SHARE_OF_MEMORY * num_gpus)
        set_reproducible(deterministic)
        self._replica: Any = None
        self._batch = -1
        self._function: UnitFunction
        self._shared: tuple[Any, ...] = ()

    def load(self, replica: Shipment) -> None:
        """Take the replica; not at birth, so that the driver sees when the process is there."""
        self._replica = loads(replica)

    def run(self, batch: int, call: Shipment, keys: Sequence[Key], arguments: Shipment) -> Answers:
        """Run the units of one message, one after another.

        Args:
            batch: number of the `run` call of the pool; `call` is unpacked once for each.
            call: the function and the shared arguments.
            keys: the units' keys.
            arguments: each unit's own arguments.

        Returns:
            The values of the units, in their order, and the seconds that they took. A unit that fails is
            left out with all behind it, so that those before it are kept; as the first of a message it
            raises.
        """
        if batch != self._batch:
            # What units share are records, which nobody writes into.
            self._function, self._shared = loads(call, codes_in_place=True)
            self._batch = batch
        began = time.monotonic()
        values: list[dict[str, np.ndarray]] = []
        for key, own in zip(keys, loads(arguments), strict=True):
            try:
                values.append(owned_value(key, self._function(self._replica, *self._shared, *own)))
            except Exception:
                if not values:
                    raise
                break
        return values, time.monotonic() - began


class FleetSettings(Protocol):
    """How many actors, and what each has: the section `cluster` of the settings is one."""

    @property
    def num_workers(self) -> int:
        """How many actors are asked for."""
        ...

    @property
    def min_workers(self) -> int:
        """How many stay while there is nothing for them to do."""
        ...

    @property
    def max_workers(self) -> int | None:
        """How many there may be where the cluster has room for more than were asked for; None: no more."""
        ...

    @property
    def threads(self) -> int:
        """Of torch in each worker; results may depend on it, so it is not derived."""
        ...

    @property
    def deterministic(self) -> bool:
        """Whether operations without a deterministic implementation are refused."""
        ...

    @property
    def cpus_per_worker(self) -> float:
        """Logical CPUs that an actor reserves."""
        ...

    @property
    def unit_timeout_seconds(self) -> float:
        """How long a unit may take, counted from when its worker starts on it."""
        ...

    @property
    def startup_timeout_seconds(self) -> float:
        """How long a worker that has its CPUs may take to get ready, counted only while a run waits."""
        ...

    def num_gpus(self, cluster_has_gpus: bool) -> float:
        """GPUs that an actor reserves, and the only ones it sees; a fraction shares one."""
        ...


@dataclass
class Call:
    """Units on their way; `clock` is the earliest time at which their worker can have started on them."""

    ref: ray.ObjectRef[Any]
    keys: tuple[Key, ...]
    clock: float


@dataclass
class Member:
    """The driver's side of one actor.

    Attributes:
        actor: Ray's handle.
        ready_ref: answers when it has done what it was asked for last: start, load the replica, show itself.
        clock: when it was asked for that.
        has_place: whether its process runs: before, it may wait for CPUs that others have.
        is_ready: whether it takes units.
        calls: oldest first.
    """

    actor: Any
    ready_ref: ray.ObjectRef[Any]
    clock: float
    has_place: bool = False
    is_ready: bool = False
    calls: list[Call] = field(default_factory=list)


class Fleet:
    """The actors that are alive or on their way, each with the same replica.

    As many as are asked for, whether or not the cluster has room: those without a place wait for it, which
    an autoscaler sees, and take it as others end or nodes come.

    Args:
        replica: what each actor gets a copy of.
        settings: how many actors, and what each has.
        clock: seconds since some moment; what is overdue is judged by it.
    """

    def __init__(self, replica: Any, settings: FleetSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        cluster: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self._num_gpus = settings.num_gpus(cluster.get("GPU", 0) > 0)
        self._room = Room(settings.cpus_per_worker, self._num_gpus)
        self._looked = self._clock()
        self._has_room_since: float | None = None
        # Ray's own restarts lose the constructor's arguments the second time, so the driver respawns.
        # Spread over the nodes, so that memory and bandwidth are, and one lost node costs few workers.
        self._actor_class: Any = ray.remote(
            num_cpus=settings.cpus_per_worker,
            num_gpus=self._num_gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )(ReplicaWorker)
        # A later actor needs the replica again, so the reference lives as long as the fleet.
        self._replica_ref: ray.ObjectRef[Any] | None = ray.put(dumps(replica, "the replica"))
        self.members: list[Member] = []
        self.top_up()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._replica_ref is None

    def top_up(self) -> None:
        """Ask for as many actors as are missing, without waiting for them."""
        while len(self.members) < self._settings.num_workers:
            self._ask_for_one()

    def grow(self) -> None:
        """Take one actor more than was asked for, if it may be and the cluster has room for it now."""
        if len(self.members) < (self._settings.max_workers or 0) and self._room.is_free():
            self._ask_for_one()

    def get_ready(self, member: Member) -> None:
        """Take in that an actor did what it was asked for: it has its place, and then its replica.

        Raises:
            PoolError: the replica cannot be put together there.
            RaysearchError: for a reason that it tells itself, such as a function Task(model=...) that fails.
        """
        try:
            ray.get(member.ready_ref)
        except RayTaskError as error:
            if isinstance(error.cause, RaysearchError):
                raise error.cause from error
            raise PoolError(f"a worker could not be built from the replica: {error}") from error
        if member.has_place:
            member.is_ready = True
            return
        member.has_place = True
        member.ready_ref = member.actor.load.remote(self._replica_ref)
        member.clock = self._clock()

    def is_overdue(self, member: Member) -> bool:
        """Whether it has been getting ready, or busy with its oldest call, for too many seconds.

        One that waits for its place never is.
        """
        now = self._clock()
        if not member.is_ready:
            return member.has_place and now - member.clock > self._settings.startup_timeout_seconds
        return bool(member.calls) and now - member.calls[0].clock > self._settings.unit_timeout_seconds

    def muster(self) -> None:
        """Get ready for other work.

        An actor may have died while nobody looked, so each must answer once more before it gets a unit
        that could be blamed for it. One that stays busy with abandoned units is replaced instead: it
        might never be done.
        """
        refs = [call.ref for member in self.members for call in member.calls]
        done = set(ray.wait(refs, num_returns=len(refs), timeout=_POLL_SECONDS)[0]) if refs else set()
        for member in list(self.members):
            if any(call.ref not in done for call in member.calls):
                self.kill(member)
            elif member.is_ready:
                member.calls, member.is_ready = [], False
                member.ready_ref = member.actor.__ray_ready__.remote()
            member.clock = self._clock()
        self._has_room_since = None
        self.top_up()

    def wait(self) -> set[ray.ObjectRef[Any]]:
        """Wait a little until anything is ready, then give everything that is."""
        refs = [member.ready_ref for member in self.members if not member.is_ready]
        refs += [call.ref for member in self.members for call in member.calls]
        if not refs:
            return set()
        ray.wait(refs, num_returns=1, timeout=_POLL_SECONDS)
        return set(ray.wait(refs, num_returns=len(refs), timeout=0)[0])

    def kill(self, member: Member) -> None:
        """End an actor that is dead, hung, not needed, or merely unreachable and still holding its GPU."""
        ray.kill(member.actor)
        self.members.remove(member)

    def give_back(self) -> None:
        """End actors that have nothing to do, so that others may have their CPUs; `min_workers` stay."""
        idle = [member for member in self.members if not member.calls]
        # Those without a place first: they only stand in others' way.
        idle.sort(key=lambda member: member.is_ready)
        for member in idle[: max(0, len(self.members) - self._settings.min_workers)]:
            self.kill(member)

    def waits_for(self) -> str | None:
        """What a fleet without a worker waits for, as a sentence; "" where it has one.

        Looks at the cluster now and then, and else gives None.

        Raises:
            PoolError: the cluster can never have it, or has it and gives no worker.
        """
        if any(member.has_place for member in self.members):
            self._has_room_since = None
            return ""
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS:
            return None
        self._looked = now
        self._check_hope(now)
        return (
            f"waits for the first of {self._settings.num_workers} workers with {self._room.each} each: "
            f"{self._room.describe()}"
        )

    def _check_hope(self, now: float) -> None:
        """Refuse to wait for what can never come, or is there and helps nothing."""
        can_come = self._room.can_come()
        if can_come and not self._room.is_free():
            # It is others' turn, or an autoscaler's.
            self._has_room_since = None
            return
        if self._has_room_since is None:
            self._has_room_since = min((member.clock for member in self.members), default=now)
            if can_come:
                self._has_room_since = now
        if now - self._has_room_since > self._settings.startup_timeout_seconds:
            raise self.nowhere_to_run(
                f"no worker was ready within {self._settings.startup_timeout_seconds:g} seconds"
            )

    def nowhere_to_run(self, reason: str) -> PoolError:
        """The error of a cluster that does not give what was asked for."""
        return PoolError(
            f"{reason}: asked for {self._settings.num_workers} workers with {self._room.each} each; "
            f"{self._room.describe()}. Ask for less, or raise cluster.startup_timeout_seconds if the cluster "
            "is still growing or the model takes long to build"
        )

    def close(self) -> None:
        """Kill all actors, whatever they are doing."""
        members, self.members, self._replica_ref = self.members, [], None
        if ray.is_initialized():
            for member in members:
                ray.kill(member.actor)

    def _ask_for_one(self) -> None:
        settings = self._settings
        actor = self._actor_class.remote(settings.threads, settings.deterministic, self._num_gpus)
        self.members.append(Member(actor, actor.__ray_ready__.remote(), self._clock()))
