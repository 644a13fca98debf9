"""What a cluster has for a fleet: free now, there at all, or to come by an autoscaler."""

from __future__ import annotations

import json
from collections.abc import Mapping

import ray

Resources = Mapping[str, float]

_REPORT = "__autoscaling_status"
"""Under which Ray keeps what its autoscaler, or the monitor in its place, said last."""


def most_resources() -> Resources | None:
    """What an autoscaler may let the cluster grow to; None where there is none that tells."""
    # Ray's own libraries read it here; where a later Ray has moved it, it is not known.
    state = getattr(getattr(ray, "_private", None), "state", None)
    read = getattr(getattr(state, "state", None), "get_max_resources_from_cluster_config", None)
    most: Resources | None = None if read is None else read()
    return most


def has_no_autoscaler() -> bool:
    """Whether nodes join by hand alone; False where Ray does not tell."""
    try:
        from ray.experimental.internal_kv import _internal_kv_get

        report = json.loads(_internal_kv_get(_REPORT) or "{}")["autoscaler_report"]
        kinds = {*(report["active_nodes"] or ()), *(report["idle_nodes"] or ())}
    except (ImportError, LookupError, TypeError, ValueError, ray.exceptions.RayError):
        return False
    # Without an autoscaler each node has a kind of its own, by its id.
    nodes = {f"node_{node['NodeID']}" for node in ray.nodes()}  # type: ignore[no-untyped-call]
    return bool(kinds) and kinds <= nodes


class Room:
    """Whether a cluster can take one more worker.

    Attributes:
        each: what a worker reserves, without what it needs none of.

    Args:
        num_cpus: of a worker.
        num_gpus: of a worker.
    """

    def __init__(self, num_cpus: float, num_gpus: float) -> None:
        self.each = _named({"CPU": num_cpus, "GPU": num_gpus})

    def is_free(self) -> bool:
        """Whether there is as much that nobody has reserved."""
        free: Resources = ray.available_resources()  # type: ignore[no-untyped-call]
        return self._fits(free)

    def can_come(self) -> bool:
        """Whether a node has as much in all, or the cluster may grow to it."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        most = most_resources()
        return any(self._fits(node) for node in nodes) or (most is not None and self._fits(most))

    def describe(self) -> str:
        """What there is and what of it is free."""
        free: Resources = ray.available_resources()  # type: ignore[no-untyped-call]
        total: Resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return f"the cluster has {_named(total)}, of which {_named(free)} are free"

    def _fits(self, resources: Resources) -> bool:
        return all(resources.get(name, 0.0) >= amount for name, amount in self.each.items())


def _named(resources: Resources) -> dict[str, float]:
    return {name: resources[name] for name in ("CPU", "GPU") if resources.get(name)}
