"""Which pool a configuration asks for, and the one pool that all stages of a run share."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch

from raysearch.artifacts import UnitLog
from raysearch.cluster.pool import LocalPool, Pool
from raysearch.cluster.resuming import ResumingPool
from raysearch.config import ClusterConfig, Config
from raysearch.errors import PoolError, StorageError
from raysearch.evaluation import Replica
from raysearch.pipeline.progress import Progress

if TYPE_CHECKING:
    from raysearch.cluster.session import RaySession

_log = logging.getLogger(__name__)

Tell = Callable[[str], None]
"""Is given what a run without a worker waits for, and "" when it has one."""


def silent(text: str) -> None:
    """Tell nobody."""


class OpenPool(Protocol):
    """Starts the workers."""

    def __call__(self, replica: Replica, tell: Tell = silent) -> Pool:
        """Give each a copy of the replica; `tell` is given what they wait for."""
        ...


@dataclass(frozen=True)
class PoolSession:
    """What a run computes on.

    Attributes:
        config: the settings, with the device in force in place of "auto".
        open_pool: starts the workers.
        trains_on_ray: whether training runs on Ray Train workers, else in this process.
    """

    config: Config
    open_pool: OpenPool
    trains_on_ray: bool


class Fleet:
    """The pool of a run: opened by the first stage that needs it, shared by all, and closed once.

    A resumed run whose stages are all done opens none.

    Args:
        open_pool: starts the workers.
        log: keeps finished units on disk.
        progress: is told of finished units.
    """

    def __init__(self, open_pool: Callable[[], Pool], log: UnitLog, progress: Progress) -> None:
        self._open_pool = open_pool
        self._log = log
        self._progress = progress
        self._pool: Pool | None = None
        self._parts: dict[str, ResumingPool] = {}

    def pool(self, part: str) -> Pool:
        """The pool, remembering the units of one part of a stage under the part's name."""
        if self._pool is None:
            self._pool = self._open_pool()
        if part not in self._parts:
            # One for all rounds of a part, for it reads what is on disk once.
            report = partial(self._progress.units, part)
            self._parts[part] = ResumingPool(self._pool, self._log, part, report)
        return self._parts[part]

    def close(self) -> None:
        """Release the workers, and keep what they finished."""
        self._parts.clear()
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        try:
            self._log.close()
        except StorageError as error:
            # What ended the run is told, not what comes of it.
            _log.warning("%s", error)


@contextmanager
def joined_cluster(cluster: ClusterConfig, address: str) -> Iterator[RaySession | None]:
    """Join the cluster that a run will work on before anything is computed; nothing is done without one.

    `pool_session` finds it joined.

    Args:
        cluster: the settings.
        address: see `pool_session`.

    Yields:
        What was joined.

    Raises:
        ConfigError: the address cannot be read.
        PoolError: nothing answers there.
    """
    # Ray may have been started by the caller; who has not imported it has not.
    is_running = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    if cluster.workers == 0 or (address == "local" and not is_running):
        yield None
        return
    from raysearch.cluster.session import ray_session

    with ray_session(address, 0, num_train_workers=0) as session:
        yield session


def get_ready(config: Config, session: RaySession | None) -> None:
    """Let a cluster start processes for the workers while a run is tried out here; see `warm_up`.

    Args:
        config: the settings, with the number of workers in force.
        session: what was joined, if anything.
    """
    if session is None or not config.cluster.num_workers:
        return
    from raysearch.cluster.nodes import warm_up

    has_gpus = _has_gpus(session)
    warm_up(config.settled(has_gpus).cluster, has_gpus)


def _has_gpus(session: RaySession) -> bool:
    """Whether workers can compute on GPUs, which a torch that was built without CUDA cannot anywhere."""
    return session.may_have("GPU") and torch.version.cuda is not None


@contextmanager
def pool_session(config: Config, address: str, trains: bool = False) -> Iterator[PoolSession]:
    """What pools are opened on while the session lasts: actors on a Ray, or this process.

    Ray lives as long as the session, so training may use it after the pool is closed.

    Args:
        config: its section `cluster` says how many workers there are and what each has.
        address: "local", "auto" or "HOST[:PORT]", see `raysearch.run`.
        trains: whether the run will train.

    Raises:
        ConfigError: the address cannot be read.
        PoolError: nothing answers there; the cluster can never hold the workers of training; or
            this process is to compute on a GPU, and has none.
    """
    cluster = config.cluster
    if cluster.num_workers == 0:
        settled = config.settled(torch.cuda.is_available())
        if settled.cluster.device == "cuda" and not torch.cuda.is_available():
            raise PoolError(
                "cluster.device is 'cuda', and this process sees no GPU that torch can use; set it to 'auto' "
                "or 'cpu', or give workers on a cluster that has GPUs"
            )
        yield PoolSession(settled, partial(_open_local_pool, deterministic=cluster.deterministic), False)
        return
    from raysearch.cluster.ray_pool import IDLE_SECONDS, RayPool
    from raysearch.cluster.session import ray_session

    with ray_session(
        address,
        cluster.num_workers,
        cpus_per_worker=max(cluster.cpus_per_worker, config.training.cpus_per_worker),
        num_train_workers=config.training.num_workers,
    ) as session:
        num_gpus = int(session.resources.get("GPU", 0))
        settled = config.settled(_has_gpus(session))
        settings = settled.cluster
        if session.is_embedded:
            settings = shared_gpus(settings, num_gpus)
        if trains:
            training = settled.training
            least = training.min_workers or training.num_workers
            session.check_workers(least, "CPU", training.cpus_per_worker)
            if training.use_gpu:
                session.check_workers(least, "GPU", 1.0)
        # On one machine a single worker computes what this process does, and its start costs more.
        trains_on_ray = not session.is_embedded or config.training.num_workers > 1
        # On an embedded Ray there is nobody to give workers back to.
        idle_seconds = None if session.is_embedded else IDLE_SECONDS

        def open_pool(replica: Replica, tell: Tell = silent) -> Pool:
            return RayPool(replica, settings, idle_seconds=idle_seconds, tell=tell)

        yield PoolSession(settled, open_pool, trains_on_ray)


def shared_gpus(cluster: ClusterConfig, num_gpus: int) -> ClusterConfig:
    """The settings with a share of a GPU for each worker, where one machine has fewer GPUs than workers.

    Elsewhere a worker gets a GPU of its own: a cluster may grow, and goes on with the workers it can place.

    Args:
        cluster: the settings, with the device in force.
        num_gpus: GPUs of the machine.

    Example:
        >>> shared_gpus(ClusterConfig(device="cuda", workers=3), 2).gpus_per_worker
        0.5
    """
    num_workers = cluster.num_workers
    if cluster.device != "cuda" or cluster.gpus_per_worker is not None or not 0 < num_gpus < num_workers:
        return cluster
    return cluster.model_copy(update={"gpus_per_worker": 1 / math.ceil(num_workers / num_gpus)})


def _open_local_pool(replica: Replica, tell: Tell = silent, *, deterministic: bool) -> Pool:
    return LocalPool(replica.place(), deterministic=deterministic)
