"""A discrete-event model of a fleet: what the pool's rules cost on more workers than there are here.

Modelled: workers that become ready after a start-up time; one driver that hands out messages one after
another, each of as many units as the pool's own rule says; up to `depth` of them on their way to a worker;
nodes that are slower than others; workers that die at a given rate, whose units go back to the front of the
queue and run again after a replacement has started. Not modelled: bandwidth of the storage, and a scheduler
that grants workers late.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from raysearch.cluster.messages import portion

WORKERS_PER_NODE = 8
UNIT_TIMEOUT = 600.0
"""The default of `cluster.unit_timeout_seconds`."""


@dataclass(frozen=True)
class FleetModel:
    """A fleet and its troubles.

    Attributes:
        num_workers: workers, `WORKERS_PER_NODE` on a node.
        depth: messages in flight per worker.
        driver_seconds: of the driver per unit: pack, take in, write to disk.
        message_seconds: of the driver per message, however many units it holds.
        startup_seconds: (least, most) until a worker is ready, drawn evenly; for replacements too.
        failures_per_hour: deaths per worker-hour.
        detection_seconds: until a death is noticed.
        slow_share: share of nodes that are slow.
        slow_factor: how much longer a unit takes there.
    """

    num_workers: int
    depth: int = 2
    driver_seconds: float = 0.0
    message_seconds: float = 0.0
    startup_seconds: tuple[float, float] = (0.0, 0.0)
    failures_per_hour: float = 0.0
    detection_seconds: float = 0.0
    slow_share: float = 0.0
    slow_factor: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """What happened: `efficiency` is the work at normal speed / (workers · seconds until the last answer)."""

    seconds: float
    efficiency: float
    deaths: int
    repeated_units: int


@dataclass
class _Worker:
    slowness: float
    life: int = 0
    is_alive: bool = False
    on_the_way: deque[list[int]] = field(default_factory=deque)
    arrived: int = 0
    is_busy: bool = False


class _Simulation:
    def __init__(self, unit_seconds: Sequence[float], fleet: FleetModel, seed: int) -> None:
        self.seconds, self.fleet = unit_seconds, fleet
        self.rng = np.random.default_rng(seed)
        num_nodes = math.ceil(fleet.num_workers / WORKERS_PER_NODE)
        slow = set(self.rng.permutation(num_nodes)[: round(fleet.slow_share * num_nodes)].tolist())
        self.workers = [
            _Worker(fleet.slow_factor if number // WORKERS_PER_NODE in slow else 1.0)
            for number in range(fleet.num_workers)
        ]
        self.queue = deque(range(len(unit_seconds)))
        self.hungry: set[int] = set()
        self.events: list[tuple[float, int, str, int, int]] = []
        self.count = self.deaths = self.sent = self.done = 0
        self.driver_free = 0.0
        # What the driver has measured of a unit, as the pool does.
        self.unit_seconds = 0.0

    def at(self, time: float, kind: str, number: int) -> None:
        self.count += 1
        heapq.heappush(self.events, (time, self.count, kind, number, self.workers[number].life))

    def run(self) -> Outcome:
        for number in range(len(self.workers)):
            self.at(self.startup(), "ready", number)
        now = 0.0
        while self.done < len(self.seconds):
            now = self.events[0][0]
            while self.events and self.events[0][0] == now:
                _, _, kind, number, life = heapq.heappop(self.events)
                if life == self.workers[number].life:
                    getattr(self, kind)(now, number)
            self.fill(now)
        work = float(np.sum(self.seconds))
        efficiency = work / (len(self.workers) * now)
        return Outcome(now, efficiency, self.deaths, self.sent - self.done - self.unanswered())

    def unanswered(self) -> int:
        return sum(len(message) for worker in self.workers for message in worker.on_the_way)

    def startup(self) -> float:
        return float(self.rng.uniform(*self.fleet.startup_seconds))

    def ready(self, now: float, number: int) -> None:
        self.workers[number].is_alive = True
        self.hungry.add(number)
        if self.fleet.failures_per_hour:
            self.at(now + self.rng.exponential(3600 / self.fleet.failures_per_hour), "fail", number)

    def fail(self, now: float, number: int) -> None:
        old = self.workers[number]
        lost = [unit for message in old.on_the_way for unit in message]
        self.queue.extendleft(reversed(lost))
        self.workers[number] = _Worker(old.slowness, old.life + 1)
        self.hungry.discard(number)
        self.deaths += 1
        self.at(now + self.fleet.detection_seconds + self.startup(), "ready", number)

    def fill(self, now: float) -> None:
        """As the pool: to the workers with the fewest units first, one send after another."""
        for load in range(self.fleet.depth):
            for number in sorted(self.hungry):
                if not self.queue:
                    return
                worker = self.workers[number]
                if len(worker.on_the_way) == load:
                    message = self.next_message()
                    worker.on_the_way.append(message)
                    self.sent += len(message)
                    cost = self.fleet.message_seconds + len(message) * self.fleet.driver_seconds
                    self.driver_free = max(now, self.driver_free) + cost
                    self.at(self.driver_free, "arrive", number)
        self.hungry = {n for n in self.hungry if len(self.workers[n].on_the_way) < self.fleet.depth}

    def next_message(self) -> list[int]:
        workers = len(self.workers)
        slots = workers * self.fleet.depth
        size = portion(len(self.queue) - 1, slots, workers, self.unit_seconds, UNIT_TIMEOUT / 10)
        return [self.queue.popleft() for _ in range(size)]

    def arrive(self, now: float, number: int) -> None:
        self.workers[number].arrived += 1
        self.start(now, number)

    def start(self, now: float, number: int) -> None:
        worker = self.workers[number]
        if worker.arrived and not worker.is_busy:
            worker.is_busy = True
            self.at(now + self.takes(worker), "finish", number)

    def takes(self, worker: _Worker) -> float:
        return sum(self.seconds[unit] for unit in worker.on_the_way[0]) * worker.slowness

    def finish(self, now: float, number: int) -> None:
        worker = self.workers[number]
        each = self.takes(worker) / len(worker.on_the_way[0])
        self.unit_seconds = each if not self.unit_seconds else 0.8 * self.unit_seconds + 0.2 * each
        self.done += len(worker.on_the_way.popleft())
        worker.arrived -= 1
        worker.is_busy = False
        self.hungry.add(number)
        self.start(now, number)


def simulate(unit_seconds: Sequence[float], fleet: FleetModel, seed: int = 0) -> Outcome:
    """Run units with these durations on a fleet; the same seed gives the same outcome.

    Example:
        >>> simulate([2.0] * 10, FleetModel(4)).seconds
        6.0
    """
    return _Simulation(unit_seconds, fleet, seed).run()
