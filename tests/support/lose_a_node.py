"""A pool on a cluster of two nodes, of which one is lost; run as a module, prints what happened as JSON.

Ray reads how fast a node counts as dead from the environment, before it starts: hence a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from pathlib import Path

os.environ |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "8"}

import ray
from ray.cluster_utils import Cluster

from raysearch.cluster.pool import LocalPool
from raysearch.cluster.ray_pool import RayPool
from raysearch.config import ClusterConfig
from tests.support import pool_units
from tests.support.patience import wait_until

PATIENT = {"unit_timeout_seconds": 1e9, "startup_timeout_seconds": 1e9}


class Counting(logging.Handler):
    """Counts warnings about workers that were replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.replaced = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.replaced += "is replaced" in record.getMessage()


def main() -> None:
    # Four CPUs a node: without spreading, both workers would sit on the head.
    options = {"num_cpus": 4, "object_store_memory": 80 << 20}
    cluster = Cluster(
        initialize_head=True,
        connect=False,
        head_node_args={"include_dashboard": False, "num_gpus": 1, **options},
    )
    second = cluster.add_node(**options)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    # Ray places actors by what it knows of the nodes, which is later than that they are there: before, both
    # workers would sit on the head.
    wait_until(lambda: ray.available_resources().get("CPU") == 2 * options["num_cpus"])
    counting = Counting()
    logging.getLogger("raysearch.cluster").addHandler(counting)
    work = pool_units.trace_units(5, 4)
    removed_after, num_nodes = 0, 0
    answers: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(
            RayPool(pool_units.small_model(), ClusterConfig(workers=2, device="cpu", **PATIENT))
        ) as pool,
    ):
        Path(folder, "nodes").mkdir()
        for key, value in pool.run(pool_units.trace_on_nodes, work, (folder,)):
            answers[repr(key)] = value["probes"].tolist()
            if not removed_after:
                # An answer means that both nodes had a unit; the later ones wait until a node is gone.
                removed_after, num_nodes = len(answers), len(list(Path(folder, "nodes").iterdir()))
                cluster.remove_node(second, allow_graceful=False)
                Path(folder, "removed").touch()
    # Ray takes a node's word for its GPUs, so the bookkeeping can be seen without one.
    sharing = ClusterConfig(workers=2, gpus_per_worker=0.5, device="cuda", **PATIENT)
    with contextlib.closing(RayPool(None, sharing)) as pool:
        workers = pool_units.meet_workers(pool, 2)
    reference = {
        repr(key): value["probes"].tolist()
        for key, value in LocalPool(pool_units.small_model()).run(pool_units.trace, work, (1.0,))
    }
    facts = {
        "is_equal": answers == reference,
        "nodes": num_nodes,
        "removed_after": removed_after,
        "units": len(work),
        "replaced": counting.replaced,
        "sharing_workers": len({int(worker["pid"]) for worker in workers}),
        "their_gpus": sorted({str(worker["gpus"]) for worker in workers}),
    }
    print("FACTS", json.dumps(facts), flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
