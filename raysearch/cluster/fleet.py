"""The actors of a pool: plain worker, the driver's view of each, and their birth and death."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import ray
import torch

from raysearch.cluster.pool import Key, UnitFunction, owned_value
from raysearch.cluster.shipping import Shipment, dumps, loads
from raysearch.determinism import pin_threads, set_reproducible
from raysearch.errors import PoolError

_log = logging.getLogger(__name__)
_POLL_SECONDS = 1.0

SHARE_OF_MEMORY = 0.9
"""Of the part of a GPU's memory that an actor asked for; the rest is what CUDA takes for each process."""

Clock = Callable[[], float]
"""Seconds since some moment, as `time.monotonic` counts them."""


class ReplicaWorker:
    """Holds one replica and runs units on it; `Fleet` makes actors of it."""

    def __init__(self, replica: Shipment, threads: int, deterministic: bool, num_gpus: float) -> None:
        # Ray derives the number from the CPUs an actor asks for, and results may depend on it.
        pin_threads(threads)
        if not num_gpus:
            # Ray leaves all GPUs in sight of an actor that asked for none; they are other actors'.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        elif num_gpus < 1 and torch.cuda.is_available():
            # Its own share, so that what fits does not depend on what the others on the GPU do just then.
            torch.cuda.set_per_process_memory_fraction(SHARE_OF_MEMORY * num_gpus)
        set_reproducible(deterministic)
        self._replica = loads(replica)
        self._batch = -1
        self._function: UnitFunction
        self._shared: tuple[Any, ...] = ()

    def run(self, batch: int, call: Shipment, key: Key, arguments: Shipment) -> dict[str, np.ndarray]:
        """Run one unit.

        Args:
            batch: number of the `run` call of the pool; `call` is unpacked once for each.
            call: the function and the shared arguments.
            key: the unit's key.
            arguments: the unit's own arguments.
        """
        if batch != self._batch:
            self._function, self._shared = loads(call)
            self._batch = batch
        return owned_value(key, self._function(self._replica, *self._shared, *loads(arguments)))


class FleetSettings(Protocol):
    """How many actors, and what each has: the section `cluster` of the settings is one."""

    @property
    def num_workers(self) -> int:
        """How many actors."""
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
        """How long a worker may take to get ready, counted only while a run waits."""
        ...

    def num_gpus(self, cluster_has_gpus: bool) -> float:
        """GPUs that an actor reserves, and the only ones it sees; a fraction shares one."""
        ...


@dataclass
class Call:
    """A unit on its way; `clock` is the earliest time at which its worker can have started on it."""

    ref: ray.ObjectRef[Any]
    key: Key
    clock: float


@dataclass
class Member:
    """The driver's side of one actor. `clock` is when it was asked to get ready; `calls` are oldest first."""

    actor: Any
    ready_ref: ray.ObjectRef[Any]
    clock: float
    is_ready: bool = False
    calls: list[Call] = field(default_factory=list)


class Fleet:
    """The actors that are alive or on their way, up to a fixed number, each with the same replica.

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
        settings = self._settings
        while len(self.members) < settings.num_workers:
            actor = self._actor_class.remote(
                self._replica_ref, settings.threads, settings.deterministic, self._num_gpus
            )
            self.members.append(Member(actor, actor.__ray_ready__.remote(), self._clock()))

    def is_overdue(self, member: Member) -> bool:
        """Whether it has been getting ready, or busy with its oldest call, for too many seconds."""
        now = self._clock()
        if not member.is_ready:
            return now - member.clock > self._settings.startup_timeout_seconds
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
        self.top_up()

    def wait(self) -> set[ray.ObjectRef[Any]]:
        """Wait a little until anything is ready, then give everything that is."""
        refs = [member.ready_ref for member in self.members if not member.is_ready]
        refs += [call.ref for member in self.members for call in member.calls]
        ray.wait(refs, num_returns=1, timeout=_POLL_SECONDS)
        return set(ray.wait(refs, num_returns=len(refs), timeout=0)[0])

    def kill(self, member: Member) -> None:
        """End an actor that is dead, hung, or merely unreachable and still holding its GPU."""
        ray.kill(member.actor)
        self.members.remove(member)

    def give_up(self, member: Member) -> None:
        """Go on without an actor that never got ready.

        Raises:
            PoolError: no other actor is ready.
        """
        seconds = self._settings.startup_timeout_seconds
        if not any(other.is_ready for other in self.members):
            raise self.nowhere_to_run(f"no worker was ready within {seconds:g} seconds")
        self.kill(member)
        _log.warning(
            "a worker was not ready within %g seconds; the run goes on with %d of %d",
            seconds,
            len(self.members),
            self._settings.num_workers,
        )

    def nowhere_to_run(self, reason: str) -> PoolError:
        """The error of a cluster that does not give what was asked for."""
        requested = _amounts({"CPU": self._settings.cpus_per_worker, "GPU": self._num_gpus})
        free = _amounts(ray.available_resources())  # type: ignore[no-untyped-call]
        total = _amounts(ray.cluster_resources())  # type: ignore[no-untyped-call]
        return PoolError(
            f"{reason}: asked for {self._settings.num_workers} workers with {requested} each; the cluster "
            f"has {total}, of which {free} are free. Ask for less, free the cluster, or raise "
            "cluster.startup_timeout_seconds if the cluster is still growing or the model takes long to build"
        )

    def close(self) -> None:
        """Kill all actors, whatever they are doing."""
        members, self.members, self._replica_ref = self.members, [], None
        if ray.is_initialized():
            for member in members:
                ray.kill(member.actor)


def _amounts(resources: Mapping[str, float]) -> dict[str, float]:
    return {name: resources[name] for name in ("CPU", "GPU") if resources.get(name)}
