"""Which pool a configuration asks for, and the one pool that all stages of a run share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from raysearch.artifacts import UnitLog
from raysearch.cluster.pool import LocalPool, Pool
from raysearch.cluster.resuming import ResumingPool
from raysearch.config import Config
from raysearch.evaluation import Replica
from raysearch.pipeline.progress import Progress

OpenPool = Callable[[Replica], Pool]


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

    def pool(self, part: str) -> Pool:
        """The pool, remembering the units of one part of a stage under the part's name."""
        if self._pool is None:
            self._pool = self._open_pool()
        return ResumingPool(self._pool, self._log, part, partial(self._progress.units, part))

    def close(self) -> None:
        """Release the workers."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


@contextmanager
def pool_session(config: Config, address: str) -> Iterator[OpenPool]:
    """A function that opens pools while the session lasts: actors on a Ray, or this process.

    Ray lives as long as the session, so training may use it after the pool is closed.

    Args:
        config: its section `cluster` says how many workers there are and what each has.
        address: "local", "auto" or "HOST[:PORT]", see `raysearch.run`.

    Raises:
        ConfigError: the address cannot be read.
        PoolError: nothing answers there.
    """
    cluster = config.cluster
    if cluster.workers == 0:
        yield partial(_open_local_pool, deterministic=cluster.deterministic)
        return
    from raysearch.cluster.ray_pool import RayPool
    from raysearch.cluster.session import ray_session

    with ray_session(
        address,
        cluster.workers,
        cpus_per_worker=max(cluster.cpus_per_worker, config.training.cpus_per_worker),
        num_train_workers=config.training.num_workers,
    ):
        yield partial(RayPool, settings=cluster)


def _open_local_pool(replica: Replica, deterministic: bool) -> Pool:
    return LocalPool(replica.place(), deterministic=deterministic)
