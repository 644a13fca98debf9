"""The Ray that a run works on: an embedded one, or a cluster that is already there."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from raysearch.cluster.auth import auth_environment, settings_to_join, settings_to_start
from raysearch.cluster.room import has_no_autoscaler, most_resources
from raysearch.errors import ConfigError, PoolError
from raysearch.temporary import short_folder

_log = logging.getLogger(__name__)

DEFAULT_PORT = 6379
_PREFLIGHT_SECONDS = 5.0
JOIN_SECONDS = 20.0
"""For how long a cluster without an autoscaler is waited for: its nodes may be joining just then."""


@dataclass(frozen=True)
class RaySession:
    """What a run got.

    Attributes:
        is_embedded: whether this process started it.
        resources: what the cluster has.
        most: what it may grow to; None where that is not known.
        is_manual: whether nodes join by hand alone.
    """

    is_embedded: bool
    resources: Mapping[str, float]
    most: Mapping[str, float] | None = None
    is_manual: bool = False

    def may_have(self, resource: str) -> bool:
        """Whether the cluster has, or may grow to have, any of a resource: "CPU" or "GPU"."""
        return self.resources.get(resource, 0.0) > 0 or (self.most or {}).get(resource, 0.0) > 0

    def check_workers(self, num_workers: int, resource: str, each: float) -> None:
        """Refuse workers that the cluster can never hold together.

        Args:
            num_workers: of training.
            resource: "CPU" or "GPU".
            each: how much of it a worker reserves.

        Raises:
            PoolError: it can never have as much; states the numbers.
        """
        present = self.resources.get(resource, 0.0)
        most = present if self.most is None else max(present, self.most.get(resource, 0.0))
        # A cluster whose autoscaler does not tell its limits may grow.
        is_known = self.is_embedded or self.is_manual or self.most is not None
        if num_workers * each <= most or not is_known:
            return
        advice = "lower training.num_workers"
        if self.is_manual:
            present = most = _joined(resource, num_workers * each)
            advice = f"let nodes join first, since it has no autoscaler, or {advice}"
        if num_workers * each > most:
            raise PoolError(
                f"training.num_workers asks for {num_workers} workers of {each:g} {resource}, together "
                f"{num_workers * each:g}, and the cluster has {present:g} and can grow to {most:g} at most; "
                f"{advice} to {int(most / each)}"
            )


def _joined(resource: str, amount: float) -> float:
    """How much of a resource the cluster has, once as much is there as is wanted, or nobody came.

    Args:
        resource: "CPU" or "GPU".
        amount: that is wanted.
    """
    deadline = time.monotonic() + JOIN_SECONDS
    while True:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        present = resources.get(resource, 0.0)
        if present >= amount or time.monotonic() >= deadline:
            return present
        time.sleep(1)


@contextmanager
def ray_session(
    address: str = "local",
    num_workers: int = 1,
    *,
    cpus_per_worker: float = 1.0,
    num_train_workers: int | None = None,
    object_store_bytes: int | None = None,
    log_to_driver: bool = False,
) -> Iterator[RaySession]:
    """Make Ray usable in this process, and shut it down afterwards where this function started it.

    Where Ray is already initialised it is used as it is and left running. `ray.init` installs its own
    handler of SIGTERM: a caller's handler must be set inside the context.

    The actors of a pool keep their CPUs while QAT runs, and a Ray Train worker group that finds no free
    CPUs waits without end. An embedded Ray therefore declares CPUs for the pool, for as many training
    workers, and one to spare; these are bookkeeping and may exceed the cores. On another cluster that
    has fewer, a warning says so: it may still grow, or the pool be closed before training.

    Args:
        address: "local" starts an embedded Ray; "auto" joins the cluster of the environment (the Ray job
            this process belongs to, `RAY_ADDRESS`, or the one running on this machine); "HOST" or
            "HOST:PORT" joins the cluster whose head listens there (6379 without a port).
        num_workers: actors of the pool.
        cpus_per_worker: logical CPUs that each of them, and each training worker, reserves.
        num_train_workers: workers of QAT; as many as the pool has, unless given.
        object_store_bytes: of an embedded Ray; Ray's choice (30 % of memory) unless given.
        log_to_driver: whether what workers print reaches this process.

    Yields:
        What was joined or started.

    Raises:
        ConfigError: `address` is none of these forms.
        PoolError: Ray cannot be started or joined.
    """
    if num_train_workers is None:
        num_train_workers = num_workers
    num_cpus = math.ceil((num_workers + num_train_workers) * cpus_per_worker) + 1
    if ray.is_initialized():
        yield _session(False, num_cpus)
        return
    _set_environment()
    options: dict[str, Any] = {"log_to_driver": log_to_driver, "logging_level": logging.ERROR}
    if address == "local":
        with short_folder() as folder, auth_environment(settings_to_start()):
            options |= {"num_cpus": num_cpus, "include_dashboard": False}
            options |= {"_temp_dir": str(folder), "object_store_memory": object_store_bytes}
            with _started(address, options):
                yield _session(True, num_cpus)
        return
    to_join = _address_to_join(address)
    settings = settings_to_join(to_join) if to_join not in (None, "auto") else {}
    with auth_environment(settings), _started(to_join, options):
        yield _session(False, num_cpus)


def _session(is_embedded: bool, num_cpus: int) -> RaySession:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if resources.get("CPU", 0) < num_cpus:
        _log.warning(
            "the cluster has %g CPUs; the pool and training together want %d, so training may wait until "
            "the cluster grows or the pool is closed",
            resources.get("CPU", 0),
            num_cpus,
        )
    is_manual = not is_embedded and has_no_autoscaler()
    return RaySession(is_embedded, resources, most_resources(), is_manual)


@contextmanager
def _started(address: str | None, options: Mapping[str, Any]) -> Iterator[None]:
    try:
        ray.init(address=address, **options)
    except Exception as error:
        # Of no narrower type when its own processes take more than 30 seconds to start.
        if address == "local":
            raise PoolError(
                f"an embedded Ray cannot be started: {str(error).rstrip('.')}. Look for a machine too busy "
                "to start it in 30 seconds, too little memory, or too little room in /dev/shm and /tmp"
            ) from error
        raise PoolError(
            f"the Ray cluster at {address or 'the address of this job'} cannot be joined: {error}. It must "
            f"run the same Ray ({ray.__version__}) and Python as this process, and its token must be in "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH. From another machine, submit a job instead"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _set_environment() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # "0" is how Ray will behave; unset, some versions announce that in a FutureWarning per worker.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def _address_to_join(address: str) -> str | None:
    """What to give `ray.init`, after a look whether somebody listens there."""
    if address == "auto":
        # A job's supervisor sets this: address, token and runtime environment are inherited.
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
            return None
        address = os.environ.get("RAY_ADDRESS", "auto")
        if address == "auto":
            return address
    host, _, port = address.rpartition(":") if ":" in address else (address, "", str(DEFAULT_PORT))
    if not host or "/" in address or not port.isdecimal():
        raise ConfigError(
            f"the address {address!r} cannot be joined; allowed are 'local', 'auto', HOST and HOST:PORT "
            "(of the head, by default port 6379). To use a cluster by its http address, submit a job"
        )
    _preflight(host.strip("[]"), int(port))
    return f"{host}:{port}"


def _preflight(host: str, port: int) -> None:
    """Fail in seconds where Ray would try for more than a minute."""
    try:
        socket.create_connection((host, port), timeout=_PREFLIGHT_SECONDS).close()
    except OSError as error:
        raise PoolError(
            f"nothing answers at {host}:{port}: {error}. Check that the cluster's head is up, that its port "
            f"is {port} and that this machine may reach it"
        ) from error
