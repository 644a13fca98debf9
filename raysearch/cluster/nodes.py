"""Whether the nodes of a cluster have what a run needs there, asked before they are given work."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysearch.cluster.fleet import FleetSettings
from raysearch.cluster.shipping import Shipment, dumps, loads
from raysearch.cluster.versions import as_text, differences, versions_here
from raysearch.errors import PoolError, RaysearchError

_log = logging.getLogger(__name__)

_MOST_NODES = 64
_ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Question:
    """What every node must be able to do.

    Attributes:
        try_it: is called there; whatever it raises, or the import of what it refers to, is a no.
        what: as the end of "the node HOST cannot".
        advice: what to do about it, a sentence.
        error: what is raised.
    """

    try_it: Callable[[], object]
    what: str
    advice: str
    error: type[RaysearchError] = PoolError


@dataclass(frozen=True)
class Answer:
    """What a node says: its versions, and the first question that it cannot do."""

    versions: Mapping[str, str]
    failed: int | None = None
    reason: str = ""


def answer(questions: Sequence[Shipment]) -> Answer:
    """Asked of a node: runs there."""
    for number, question in enumerate(questions):
        try:
            loads(question)()
        except Exception as error:
            reason = str(error) if isinstance(error, RaysearchError) else f"{type(error).__name__}: {error}"
            return Answer(versions_here(), number, reason)
    return Answer(versions_here())


class NodeCheck:
    """Asks every node that can hold a worker whether it can do what a run needs, and for its versions.

    Its answers are taken as they come, for a node needs seconds to start a process for them. Versions that
    differ are warned of. A node that does not answer in a minute is left to the fleet, which needs none in
    particular.

    Args:
        questions: see `Question`.
    """

    def __init__(self, questions: Sequence[Question] = ()) -> None:
        self._questions = questions
        self._deadline = time.monotonic() + _ANSWER_SECONDS
        present: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        nodes = [node for node in present if node["Alive"] and node["Resources"].get("CPU")][:_MOST_NODES]
        shipped = ray.put([dumps(question.try_it, question.what) for question in questions])
        ask: Any = ray.remote(num_cpus=0, max_retries=0)(answer)
        self._num_nodes = len(nodes)
        self._hosts: dict[Any, str] = {}
        for node in nodes:
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ref = ask.options(scheduling_strategy=place).remote(shipped)
            self._hosts[ref] = node["NodeManagerHostname"]

    def judge(self, seconds: float = 0.0) -> None:
        """Take the answers that have come, or come within a time; what is to be said is said once.

        Raises:
            PoolError: a node has no raysearch that workers could be made of.
            RaysearchError: a node cannot do what is asked of it; of the question's type.
        """
        refs = list(self._hosts)
        if not refs:
            return
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=seconds)
        for ref in ready:
            _judge(versions_here(), self._hosts.pop(ref), ref, self._questions)

    def finish(self) -> str:
        """Wait for the answers that are still to come.

        Returns:
            What was learnt, as a sentence.

        Raises:
            PoolError: see `judge`.
            RaysearchError: see `judge`.
        """
        if not self._num_nodes:
            return "no node is there yet: an autoscaler brings the first when a worker is asked for"
        self.judge(max(0.0, self._deadline - time.monotonic()))
        for host in self._hosts.values():
            _log.warning("the node %s has not said its versions within %g seconds", host, _ANSWER_SECONDS)
        return f"{self._num_nodes} nodes asked; the driver has {as_text(versions_here())}"


def warm_up(settings: FleetSettings, has_gpus: bool) -> int:
    """Start a process for each worker that there is room for, without waiting: its imports take seconds.

    The fleet's workers take these processes. No more is asked for than is free, so nothing has to be taken
    back where the run is refused meanwhile.

    Args:
        settings: of the fleet.
        has_gpus: whether the cluster has GPUs, or may get some.

    Returns:
        How many were asked for.
    """
    each = {"CPU": settings.cpus_per_worker, "GPU": settings.num_gpus(has_gpus)}
    free: Mapping[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    rooms = [int(free.get(name, 0.0) / amount) for name, amount in each.items() if amount]
    count = min([settings.num_workers, *rooms])
    ask: Any = ray.remote(
        num_cpus=each["CPU"], num_gpus=each["GPU"], max_retries=0, scheduling_strategy="SPREAD"
    )(answer)
    for _ in range(count):
        ask.remote(())
    return count


def _judge(here: Mapping[str, str], host: str, ref: Any, questions: Sequence[Question] = ()) -> None:
    try:
        there: Answer = ray.get(ref)
    except RayError as error:
        if "ModuleNotFoundError" in str(error):
            raise PoolError(
                f"the node {host} cannot import raysearch, so no worker can run there: "
                f"{str(error).splitlines()[-1]}. Put it into the nodes' image or environment, or submit with "
                "--pip"
            ) from error
        _log.warning("the node %s cannot be asked for its versions: %s", host, error)
        return
    if others := differences(here, there.versions):
        _log.warning(
            "the node %s has other versions than the driver: %s; its workers may fail or give other last "
            "digits. Use one image on all nodes",
            host,
            others,
        )
    if there.failed is not None:
        question = questions[there.failed]
        reason = there.reason.rstrip(".")
        raise question.error(f"the node {host} cannot {question.what}: {reason}. {question.advice}")
