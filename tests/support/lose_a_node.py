"""A pool on a cluster of two nodes, of which one is lost; run as a module, prints what happened as JSON.

Ray reads how fast a node counts as dead from the environment, before it starts: hence a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time

os.environ |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "8"}

import ray
from ray.cluster_utils import Cluster

from raysearch.cluster.pool import LocalPool
from raysearch.cluster.ray_pool import RayPool
from tests.support import pool_units


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
    counting = Counting()
    logging.getLogger("raysearch.cluster").addHandler(counting)
    work = pool_units.trace_units(5, 4)
    nodes: set[str] = set()
    removed_after = 0
    got: dict[str, list[float]] = {}
    started = time.monotonic()
    with contextlib.closing(RayPool(pool_units.small_model(), num_workers=2)) as pool:
        pool_units.wait_for_workers(pool, 2)
        for key, value in pool.run(pool_units.trace_and_nap, work, (0.3,)):
            got[repr(key)] = value["probes"].tolist()
            nodes.add(str(value["node"]))
            if len(nodes) == 2 and not removed_after:
                removed_after = len(got)
                cluster.remove_node(second, allow_graceful=False)
    seconds = time.monotonic() - started
    # Ray takes a node's word for its GPUs, so the bookkeeping can be seen without one.
    with contextlib.closing(RayPool(None, num_workers=2, gpus_per_worker=0.5)) as pool:
        pool_units.wait_for_workers(pool, 2)
        naps = [value for _, value in pool.run(pool_units.nap, {(n,): (0.5,) for n in range(8)})]
    reference = {
        repr(key): value["probes"].tolist()
        for key, value in LocalPool(pool_units.small_model()).run(pool_units.trace, work, (1.0,))
    }
    facts = {
        "is_equal": got == reference,
        "nodes": len(nodes),
        "removed_after": removed_after,
        "units": len(work),
        "replaced": counting.replaced,
        "seconds": seconds,
        "sharing_workers": len({int(value["pid"]) for value in naps}),
        "their_gpus": sorted({str(value["gpus"]) for value in naps}),
    }
    print("FACTS", json.dumps(facts), flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
