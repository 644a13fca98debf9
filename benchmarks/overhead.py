"""What a run of the digits example takes besides its compute: CPU seconds and wall by stage.

Each variant is a process of its own: imports, the factory, captures and the start of Ray are in it. CPU
seconds by stage are the driver's; those of Ray's processes are known when they have ended, and stand in the
total. Variants take turns. Writes benchmarks/results/overhead.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "overhead.md"
TASK = "examples/digits/task.py:make_task"
VARIANTS = {"`--workers 0`": "0", "default": "auto", "`--workers 1` (Ray)": "1", "`--workers 2` (Ray)": "2"}
"""Name in the table → `cluster.workers`."""
Times = dict[str, tuple[float, float]]
"""Stage → (CPU seconds, wall seconds)."""


class StageClock:
    """A listener that counts CPU and wall seconds from each change of stage to the next."""

    def __init__(self) -> None:
        self.times: Times = {}
        self._stage = "imports"
        self._cpu = 0.0
        # The process began a moment before this module could be read.
        self._wall = time.time() - time.process_time()

    def __call__(self, status: object) -> None:
        """See the class."""
        self.turn(str(getattr(status, "stage", "")).split("-")[0])

    def turn(self, stage: str) -> None:
        """Book the time since the last turn, and begin a stage."""
        cpu, wall = time.process_time(), time.time()
        before = self.times.get(self._stage, (0.0, 0.0))
        self.times[self._stage] = (before[0] + cpu - self._cpu, before[1] + wall - self._wall)
        self._stage, self._cpu, self._wall = stage, cpu, wall


def run_once(workers: str) -> None:
    """In a process of its own: one run, whose times are printed as JSON."""
    clock = StageClock()
    from raysearch import api
    from raysearch.config import load_config

    config = load_config(
        assignments=[f"cluster.workers={json.dumps(workers) if workers == 'auto' else workers}"]
    )
    with tempfile.TemporaryDirectory() as storage:
        api.run(TASK, "avg_bits<=3", storage, config=config, listener=clock)
        clock.turn("end")
    print(json.dumps(clock.times))


def measure(workers: str) -> tuple[Times, float, float]:
    """Stage times, CPU seconds of all processes, wall seconds."""
    command = [sys.executable, "-m", "benchmarks.overhead", "--once", workers]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    wall = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    times = {name: (values[0], values[1]) for name, values in json.loads(done.stdout).items()}
    return times, cpu, wall


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--once", default="")
    arguments = parser.parse_args()
    if arguments.once:
        run_once(arguments.once)
        return
    load_before = os.getloadavg()[0]
    measured: dict[str, list[tuple[Times, float, float]]] = {name: [] for name in VARIANTS}
    for _ in range(arguments.repeats):
        for name, workers in VARIANTS.items():
            measured[name].append(measure(workers))
    RESULT.write_text(page(measured, load_before), encoding="utf-8")
    print(RESULT.read_text())


def page(measured: dict[str, list[tuple[Times, float, float]]], load_before: float) -> str:
    """The page: totals, then stages; medians over the repeats."""
    repeats = len(next(iter(measured.values())))
    lines: list[str] = [
        "# What a run takes besides its compute",
        "",
        (
            f"`examples/digits`, `avg_bits<=3`, ONNX and packed; medians of {repeats}, "
            f"{datetime.date.today()}, {os.cpu_count()} CPU cores, load {load_before:.1f} before and "
            f"{os.getloadavg()[0]:.1f} after. Wall seconds depend on that load, CPU "
            "seconds less so. `python -m benchmarks.overhead`"
        ),
        "",
        "| | CPU s, all processes | wall s |",
        "|---|---|---|",
    ]
    for name, runs in measured.items():
        cpu = statistics.median(seconds for _, seconds, _ in runs)
        wall = statistics.median(seconds for _, _, seconds in runs)
        lines.append(f"| {name} | {cpu:.1f} | {wall:.1f} |")
    lines += ["", "By stage, CPU seconds of the driver / wall seconds:", ""]
    names = list(measured)
    lines += [f"| stage | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    stages = dict.fromkeys(stage for runs in measured.values() for times, _, _ in runs for stage in times)
    for stage in stages:
        cells = [
            stage_text([times.get(stage, (0.0, 0.0)) for times, _, _ in runs]) for runs in measured.values()
        ]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def stage_text(times: list[tuple[float, float]]) -> str:
    """Medians of CPU and wall seconds."""
    cpu, wall = (statistics.median(values) for values in zip(*times, strict=True))
    return f"{cpu:.1f} / {wall:.1f}"


if __name__ == "__main__":
    main()
