"""What a fleet tells Prometheus, through Ray: units done, seconds per unit, deaths of workers.

The dashboard's agent serves them; without a dashboard they go nowhere and cost the same few microseconds.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Histogram

UNIT_SECONDS = [0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]
"""Upper bounds of the buckets of `raysearch_unit_seconds`."""


class FleetMetrics:
    """The metrics of all fleets of this process, each tagged by the part: the name of the unit function.

    `raysearch_units_done`, `raysearch_worker_deaths` (counters) and `raysearch_unit_seconds` (histogram, as
    the driver sees them: from when the worker can have started on a unit until its answer was taken in).
    """

    def __init__(self) -> None:
        tags = ("part",)
        self._units = Counter("raysearch_units_done", "Units that were finished.", tags)
        self._deaths = Counter("raysearch_worker_deaths", "Workers that died or were given up.", tags)
        self._seconds = Histogram("raysearch_unit_seconds", "Seconds a unit took.", UNIT_SECONDS, tags)

    def unit_done(self, part: str, seconds: float) -> None:
        """Count a unit."""
        self._units.inc(1, {"part": part})
        self._seconds.observe(seconds, {"part": part})

    def worker_died(self, part: str) -> None:
        """Count a worker that had to be replaced."""
        self._deaths.inc(1, {"part": part})
