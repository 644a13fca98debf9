"""Which pool a configuration asks for: actors on a Ray, or this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from raysearch.cluster.pool import LocalPool, Pool
from raysearch.config import Config
from raysearch.evaluation import Replica


@contextmanager
def pools_of(config: Config, address: str) -> Iterator[Callable[[Replica], Pool]]:
    """A maker of pools while the session lasts; see `cluster` in the settings.

    Raises:
        ConfigError: the address cannot be read.
        PoolError: nothing answers there.
    """
    cluster = config.cluster
    if cluster.workers == 0:
        yield partial(_local_pool, deterministic=cluster.deterministic)
        return
    from raysearch.cluster.ray_pool import RayPool
    from raysearch.cluster.session import ray_session

    with ray_session(
        address,
        cluster.workers,
        cpus_per_worker=max(cluster.cpus_per_worker, config.training.cpus_per_worker),
        num_train_workers=config.training.num_workers,
    ) as session:
        yield partial(
            RayPool,
            num_workers=cluster.workers,
            threads=cluster.threads,
            cpus_per_worker=cluster.cpus_per_worker,
            gpus_per_worker=cluster.num_gpus(session.resources.get("GPU", 0) > 0),
            deterministic=cluster.deterministic,
            unit_timeout=cluster.unit_timeout_seconds,
            startup_timeout=cluster.startup_timeout_seconds,
        )


def _local_pool(replica: Replica, deterministic: bool) -> Pool:
    return LocalPool(replica.place(), deterministic=deterministic)
