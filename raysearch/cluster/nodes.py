"""Whether the nodes of a cluster have what this process has, asked before they are given work."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysearch.errors import PoolError

_log = logging.getLogger(__name__)

PACKAGES = ("raysearch", "torch", "numpy")
"""Of which a worker must have the driver's: with another version it may fail, or round otherwise."""

_MOST_NODES = 64
_ANSWER_SECONDS = 60.0


def versions_here() -> dict[str, str]:
    """Python and the packages of the process that is asked; "" for one that is not there."""
    versions = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for package in PACKAGES:
        try:
            # A build for other devices is the same code.
            versions[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            versions[package] = ""
    return versions


def check_nodes() -> None:
    """Ask every node that can hold a worker for its versions; what differs is warned of.

    A node that does not answer in a minute is left to the fleet, which needs none in particular.

    Raises:
        PoolError: a node has no raysearch that workers could be made of.
    """
    present: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node for node in present if node["Alive"] and node["Resources"].get("CPU")][:_MOST_NODES]
    ask: Any = ray.remote(num_cpus=0, max_retries=0)(versions_here)
    answers: dict[str, Any] = {}
    for node in nodes:
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        answers[node["NodeManagerHostname"]] = ask.options(scheduling_strategy=place).remote()
    if not answers:
        # An autoscaler brings the first node when a worker is asked for.
        return
    ray.wait(list(answers.values()), num_returns=len(answers), timeout=_ANSWER_SECONDS)
    here = versions_here()
    for host, ref in answers.items():
        _compare(here, host, ref)


def _compare(here: Mapping[str, str], host: str, ref: Any) -> None:
    try:
        there: Mapping[str, str] = ray.get(ref, timeout=0)
    except GetTimeoutError:
        _log.warning("the node %s has not said its versions within %g seconds", host, _ANSWER_SECONDS)
        return
    except RayError as error:
        if "ModuleNotFoundError" in str(error):
            raise PoolError(
                f"the node {host} cannot import raysearch, so no worker can run there: "
                f"{str(error).splitlines()[-1]}. Put it into the nodes' image or environment, or submit with "
                "--pip"
            ) from error
        _log.warning("the node %s cannot be asked for its versions: %s", host, error)
        return
    others = [name for name, own in here.items() if there[name] != own]
    differences = [f"{name} {there[name] or 'none'} instead of {here[name]}" for name in others]
    if differences:
        _log.warning(
            "the node %s has other versions than the driver: %s; its workers may fail or give other last "
            "digits. Use one image on all nodes",
            host,
            ", ".join(differences),
        )
