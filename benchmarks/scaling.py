"""How the fleet scales: 1 → 2 actors measured, units a second through the driver, 1,000 GPUs simulated.

Writes benchmarks/results/scaling.md and scaling.png. The simulator is fleet_simulation.py beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from benchmarks.fleet_simulation import FleetModel, simulate
from raysearch import Task
from raysearch.artifacts import RunStore, UnitLog
from raysearch.calibration import calibrate
from raysearch.cluster import messages
from raysearch.cluster.pool import LocalPool, Pool
from raysearch.cluster.ray_pool import RayPool
from raysearch.cluster.resuming import ResumingPool
from raysearch.cluster.session import ray_session
from raysearch.config import ClusterConfig, Config, SensitivityConfig
from raysearch.evaluation import Replica
from raysearch.pipeline.inputs import check_inputs
from raysearch.pipeline.stages import make_replica
from raysearch.records import RangeTable
from raysearch.sensitivity.responses import measure_responses
from raysearch.sensitivity.traces import measure_traces

RESULTS = Path(__file__).parent / "results"
WORKERS = (1, 8, 64, 256, 1000)
UNIT_SECONDS = (1.0, 5.0, 30.0)
UNITS_PER_WORKER = 200
PLACES = ("pool alone", "with the unit log on disk")
SIZES = {"one a message": 1, "together": messages.MOST_IN_MESSAGE}
FLEET: dict[str, Any] = {
    "startup_seconds": (30.0, 90.0),
    "failures_per_hour": 0.01,
    "detection_seconds": 30.0,
    "slow_share": 0.1,
    "slow_factor": 1.3,
}
PAGE = """\
# How the fleet scales

{date}, torch {torch}, one thread a worker, {cores} CPU cores shared with other work (load average
{load:.0f} at the start, {load_after:.0f} at the end). Made by `benchmarks/scaling.py`.

## 1 → 2 actors, measured

{rounds} interleaved rounds after one that warms up; start-up excluded. With more runnable processes than
cores, wall time measures the neighbours. The share s of the CPU time that only the driver spends bounds
the speed-up on an idle machine: 1 / (s + (1 − s)/2). A unit that takes longer while the other core works
too is the machine's share of the loss: two cores then give no more than the ceiling, 2 / (unit seconds with
2 actors / with 1).

{stages}

## Through the driver, measured

{units} no-op units a round on 2 actors, which share the cores with the driver: one a message, and as many
as the pool's rule sends together (`raysearch/cluster/messages.py`).

{driver}

## {workers} workers, simulated

Not measured: a discrete-event model (`fleet_simulation.py`) of {per_worker} units a worker. Unit times
are drawn from those of the traces above, with the stragglers of a busy machine among them, and scaled to
the median of the case. The driver takes {message_ms:.2f} ms a message and {driver_ms:.2f} ms a unit, one
after another: its CPU time with the log, above. Assumed: start-up in 30–90 s, one death in 100 worker-hours,
noticed after 30 s, its units run again; one node of 8 workers in ten is 1.3 times slower; depth 2. Efficiency
is useful work at normal speed / (workers · time to the last answer), start-up included.

{curves}

![efficiency over workers](scaling.png)

With short units the run itself is short: {per_worker} units of 1 s take {per_worker} s, and the start-up of
30–90 s is nearly all of what is lost. A worker that is ready after 60 s and then never pauses is at
200/260 = 77% too, so no other way of handing out units could give 80% there; 240 units a worker could, or
workers that are ready after 50 s. Their processes are therefore started while the run is still tried out
(`warm_up` in `raysearch/cluster/nodes.py`), which is not in the model. The same without any start-up, deaths
and slow nodes as before:

{warm_curves}
"""


class Timed:
    """A pool that notes the wall and CPU seconds of each unit, measured inside its worker."""

    def __init__(self, inner: Pool) -> None:
        self.inner, self.units = inner, []  # type: tuple[Pool, list[tuple[float, float]]]

    def run(
        self, function: Any, units: Mapping[Any, Any], shared: tuple[Any, ...] = ()
    ) -> Iterator[tuple[Any, Any]]:
        """As the inner pool."""
        for key, value in self.inner.run(timed_unit, units, (function, *shared)):
            self.units.append((float(value["wall"]), float(value["cpu"])))
            yield key, {name: array for name, array in value.items() if name not in ("wall", "cpu")}


def timed_unit(replica: Any, function: Any, *arguments: Any) -> dict[str, Any]:
    wall, cpu = time.monotonic(), time.process_time()
    value = dict(function(replica, *arguments))
    value |= {
        "wall": np.array(time.monotonic() - wall),
        "cpu": np.array(time.process_time() - cpu),
    }
    return value


def nothing(_: Any, number: int) -> dict[str, np.ndarray]:
    return {"number": np.array(number)}


def task() -> Task:
    """A small convolutional net on random images: units of about a second."""
    torch.manual_seed(0)
    widths, layers = (3, 24, 24, 32, 32), []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()
    images = torch.randn(512, 3, 40, 40)
    return Task(model, (images[:2],), calibration=[images], validation=[images[:8]])


class Stages:
    """The trace and the response stage on one model, over any pool."""

    def __init__(self) -> None:
        self.inputs = check_inputs(task(), Config().settled(has_gpus=False), ("avg_bits<=4",))
        self.shards = len(self.inputs.samples.calibration)
        local = LocalPool(self.replica())
        self.ranges: RangeTable = calibrate(self.inputs.setup, local, self.shards)

    def replica(self) -> Replica:
        """What each worker holds; the stages measured here read calibration data alone."""
        return make_replica(self.inputs, search=[])

    def traces(self, pool: Pool) -> Any:
        """The trace stage."""
        return measure_traces(
            self.inputs.setup,
            pool,
            self.shards // 2,
            SensitivityConfig(estimator="hutchinson", relative_error=1e-9, max_draws=8, draw_chunk=2),
        )

    def responses(self, pool: Pool) -> Any:
        """The response stage."""
        return measure_responses(
            self.inputs.setup, self.ranges, pool, self.shards, SensitivityConfig(option_chunk=8)
        )


def measure_stages(rounds: int) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """Stage → workers → what each interleaved round gave; the first round warms up and is left out."""
    stages = Stages()
    found: dict[str, dict[int, list[dict[str, Any]]]] = {"traces": {}, "responses": {}}
    with contextlib.ExitStack() as stack:
        pools = {
            n: stack.enter_context(contextlib.closing(RayPool(stages.replica(), ClusterConfig(workers=n))))
            for n in (1, 2)
        }
        for number in range(rounds + 1):
            for name, kept in found.items():
                for workers, pool in pools.items():
                    timed = Timed(pool)
                    wall, cpu = time.monotonic(), time.process_time()
                    getattr(stages, name)(timed)
                    seconds = {"wall": time.monotonic() - wall, "driver": time.process_time() - cpu}
                    if number:
                        kept.setdefault(workers, []).append({**seconds, "units": timed.units})
    return found


def measure_driver(num_units: int, rounds: int) -> dict[str, list[tuple[float, float, float]]]:
    """Case → (units a second, driver's CPU ms per unit, units a message) of each round, with no-op units."""
    found: dict[str, list[tuple[float, float, float]]] = {
        f"{place}, {size}": [] for place in PLACES for size in SIZES
    }
    units: dict[tuple[str | int, ...], tuple[int]] = {(n,): (n,) for n in range(num_units)}
    with (
        contextlib.closing(RayPool(None, ClusterConfig(workers=2))) as pool,
        tempfile.TemporaryDirectory() as folder,
    ):
        list(pool.run(nothing, {(n,): (n,) for n in range(100)}))
        store = RunStore(folder, "run")
        store.create({}, {}, {})
        for number in range(rounds):
            for size, most in SIZES.items():
                stage = f"round-{number}-{most}"
                logged = ResumingPool(pool, UnitLog(store), stage, lambda done, total: None)
                pools: tuple[Pool, ...] = (pool, logged)
                for place, used in zip(PLACES, pools, strict=True):
                    with mock.patch.object(messages, "MOST_IN_MESSAGE", most), counted(pool) as sent:
                        wall, cpu = time.monotonic(), time.process_time()
                        assert sum(1 for _ in used.run(nothing, units)) == num_units
                        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
                    row = (num_units / wall, cpu / num_units * 1e3, num_units / len(sent))
                    found[f"{place}, {size}"].append(row)
    return found


@contextlib.contextmanager
def counted(pool: RayPool) -> Iterator[list[Any]]:
    """The messages that a pool sends meanwhile."""
    sent: list[Any] = []
    send = pool._next_keys

    def next_keys(batch: Any) -> Any:
        sent.append(send(batch))
        return sent[-1]

    with mock.patch.object(pool, "_next_keys", next_keys):
        yield sent


def driver_costs(driver: Mapping[str, list[tuple[float, float, float]]]) -> tuple[float, float]:
    """Seconds of the driver's CPU (a message, a unit), from the least of both sizes of messages."""
    alone, together = (min(driver[f"{PLACES[1]}, {size}"], key=lambda row: row[1]) for size in SIZES)
    message = max(0.0, (alone[1] - together[1]) / (1 - 1 / together[2]))
    return message / 1e3, (alone[1] - message) / 1e3


def simulated(shape: np.ndarray, costs: tuple[float, float], **options: Any) -> dict[str, dict[int, float]]:
    """Case → workers → efficiency; unit times are drawn from measured ones, scaled to the case's median.

    Args:
        shape: measured unit times.
        costs: of the driver, see `driver_costs`.
        options: of the fleet in place of `FLEET`'s.
    """
    curves: dict[str, dict[int, float]] = {}
    for median in UNIT_SECONDS:
        curve = curves[f"units of {median:g} s"] = {}
        for workers in WORKERS:
            drawn = np.random.default_rng(0).choice(shape, UNITS_PER_WORKER * workers)
            units = (drawn * median / np.median(shape)).tolist()
            driver = {"message_seconds": costs[0], "driver_seconds": costs[1]}
            fleet = FleetModel(workers, **{**FLEET, **driver, **options})
            curve[workers] = simulate(units, fleet).efficiency
    return curves


def draw(curves: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """The efficiency curves as a small picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.4), dpi=90)
    for name, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), marker="o", markersize=3, label=name)
    axes.set(xscale="log", xlabel="workers", ylabel="efficiency", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(path)


def stage_lines(found: Mapping[str, Mapping[int, list[dict[str, Any]]]]) -> list[str]:
    lines = [
        (
            "| stage | units | unit wall s, 1 actor (median; p95) | 1 actor s | 2 actors s | "
            "speed-up best | median | ceiling of the machine | driver CPU / all CPU |"
        ),
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, by_workers in found.items():
        walls = {workers: [run["wall"] for run in runs] for workers, runs in by_workers.items()}
        units = np.array([wall for run in by_workers[1] for wall, _ in run["units"]])
        seconds = {
            workers: sum(wall for run in runs for wall, _ in run["units"])
            for workers, runs in by_workers.items()
        }
        cpu = sum(cpu for run in by_workers[2] for _, cpu in run["units"])
        driver = sum(run["driver"] for run in by_workers[2])
        ratios = [one / two for one, two in zip(walls[1], walls[2], strict=True)]
        lines.append(
            f"| {name} | {len(by_workers[1][0]['units'])} | {np.median(units):.2f}; "
            f"{np.percentile(units, 95):.2f} | {statistics.median(walls[1]):.1f} | "
            f"{statistics.median(walls[2]):.1f} | {min(walls[1]) / min(walls[2]):.2f}x | "
            f"{statistics.median(ratios):.2f}x | {2 * seconds[1] / seconds[2]:.2f}x | "
            f"{driver / (driver + cpu):.1%} |"
        )
    return lines


def driver_lines(found: Mapping[str, list[tuple[float, float, float]]]) -> list[str]:
    lines = [
        "| no-op units | units/s, best | median | driver CPU ms a unit, least | units a message |",
        "|---|---|---|---|---|",
    ]
    for name, rounds in found.items():
        rates, cpus, sizes = zip(*rounds, strict=True)
        lines.append(
            f"| {name} | {max(rates):.0f} | {statistics.median(rates):.0f} | {min(cpus):.2f} | "
            f"{statistics.mean(sizes):.1f} |"
        )
    return lines


def curve_lines(curves: Mapping[str, Mapping[int, float]]) -> list[str]:
    lines = ["| workers | " + " | ".join(curves) + " |", "|---" * (len(curves) + 1) + "|"]
    for workers in WORKERS:
        lines.append(f"| {workers} | " + " | ".join(f"{c[workers]:.1%}" for c in curves.values()) + " |")
    return lines


def main() -> None:
    """Measure, simulate, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--units", type=int, default=2000)
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with ray_session("local", 3, num_train_workers=2, object_store_bytes=200 << 20):
        stages = measure_stages(options.rounds)
        driver = measure_driver(options.units, 3)
    shape = np.array([wall for run in stages["traces"][1] for wall, _ in run["units"]])
    costs = driver_costs(driver)
    curves = simulated(shape, costs)
    warm = simulated(shape, costs, startup_seconds=(0.0, 0.0))
    RESULTS.mkdir(exist_ok=True)
    draw(curves, RESULTS / "scaling.png")
    page = PAGE.format(
        date=options.date,
        torch=torch.__version__,
        cores=os.cpu_count(),
        load=load,
        load_after=os.getloadavg()[0],
        rounds=options.rounds,
        units=options.units,
        stages="\n".join(stage_lines(stages)),
        driver="\n".join(driver_lines(driver)),
        curves="\n".join(curve_lines(curves)),
        per_worker=UNITS_PER_WORKER,
        message_ms=costs[0] * 1e3,
        driver_ms=costs[1] * 1e3,
        warm_curves="\n".join(curve_lines(warm)),
        workers=WORKERS[-1],
    )
    (RESULTS / "scaling.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
