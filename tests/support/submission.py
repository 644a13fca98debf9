"""What passes between `raysearch submit` and the first finished unit on a warm head, second by second.

Writes benchmarks/results/submission.md. The head is a real one on this machine (a token, three CPUs), the
task that of examples/digits, with its net trained beforehand; the first submission warms the head and is not
counted. What the driver computes before the first unit is measured apart, in seconds of its processor time,
which neighbours on the machine do not lengthen much.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import raysearch
from raysearch.artifacts import RunStore, codecs
from raysearch.cluster.jobs import JobRequest, JobsClient
from raysearch.errors import RaysearchError
from tests.support.ray_head import Head, started_head

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"
POLL_SECONDS = 0.05
AIM_SECONDS = 12.0
STEPS = ("imports", "task", "cluster", "checks", "preflight", "workers")
DRIVER = """\
import os, sys, time
marks = []
def listener(status):
    marks.append((status.stage, time.process_time()))
    if status.stage == "workers":
        print(marks)
        sys.stdout.flush()
        os._exit(0)
import raysearch.cli.walk
from raysearch import api
config = {"training": {"epochs": 0}, "cluster": {"device": "cpu"}}
api.run(sys.argv[1], "avg_bits<=3", sys.argv[2], config=config, workers=0, listener=listener)
"""
WORKER = "import raysearch.cluster.nodes, raysearch.evaluation.replica, time; print(time.process_time())"
PAGE = """\
# From `submit` to the first unit

{date}. Made by `python -m tests.support.submission --rounds {rounds}`: `examples/digits/task.py:make_task`,
its net trained before, on a warm head on this machine; {cores} cores, load average {load:.0f} meanwhile.
Wall time is of {rounds} submissions, and other work on the cores is in it; processor time is of a driver's
process alone, the least of {rounds}.

| what | wall, median | wall, least | driver's processor time |
|---|---|---|---|
{rows}

The step `cluster` is Ray's own joining and what the nodes' answers take beyond `checks` and `preflight`,
during which they are on their way; workers' processes start meanwhile as well, with {worker:.1f} s of a
processor for the imports of each.

A job of Ray's that only prints the time starts {trivial:.1f} s after it was submitted ({trivial_least:.1f}
at least): that is Ray's own job start. Beyond it a run takes {beyond:.1f} s ({beyond_least:.1f} at least)
until its first unit is done; {aim:g} were aimed at, and
{reached}.
Of them the driver computes {cpu:.1f} s, of which {largest} takes {largest_cpu:.1f} and {second}
{second_cpu:.1f}.
"""
SUBMIT = "submit: checks, upload, request"
REST = "Ray's job start, Python's start and imports, first unit"
REACHED = "that is reached"
MISSED = (
    "that is not reached with this much other work on the cores; what an idle machine takes was not measured"
)


def driver_seconds(task: str, storage: Path) -> dict[str, float]:
    """Processor time of a driver before its first unit, step by step."""
    command = [sys.executable, "-c", DRIVER, task, str(storage)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(task).parent)
    marks = ast.literal_eval(done.stdout.splitlines()[-1])
    seconds = {"imports": marks[0][1]}
    for (stage, began), (_, ended) in pairwise(marks):
        if stage in STEPS:
            seconds[stage] = seconds.get(stage, 0.0) + ended - began
    return seconds


def trivial_start(head: Head, number: int) -> float:
    """Seconds until the command of a job that needs nothing runs."""
    client = JobsClient(head.address, head.token_file)
    began = time.time()
    name = client.submit(
        JobRequest([sys.executable, "-c", "import time; print(time.time())"], f"clock-{number}")
    )
    while not client.state(name).is_final:
        time.sleep(POLL_SECONDS)
    return float(client.logs(name).split()[-1]) - began


def submission(head: Head, task: str, storage: Path, name: str) -> dict[str, float]:
    """What one submission spent its seconds on."""
    config = raysearch.load_config(assignments=["training.epochs=0", "cluster.device=cpu"])
    began = time.time()
    job = raysearch.submit(
        task, "avg_bits<=3", storage, address=head.address, config=config, run_id=name,
        token_file=str(head.token_file),
    )  # fmt: skip
    submitted = time.time()
    store = RunStore(storage, name)
    while not _has_unit(store):
        time.sleep(POLL_SECONDS)
    first_unit = time.time()
    seconds = dict(store.load(codecs.STATUS).seconds)
    job.cancel()
    before = {step: seconds[step] for step in STEPS if step in seconds}
    rest = first_unit - submitted - sum(before.values())
    return {
        SUBMIT: submitted - began,
        **before,
        REST: rest,
        "all": first_unit - began,
    }


def _has_unit(store: RunStore) -> bool:
    try:
        status = store.load(codecs.STATUS)
    except RaysearchError:
        return False
    if status.state == "failed":
        raise SystemExit(status.message)
    return status.stage != "workers" and bool(status.done or status.stage != "calibration")


def _worker_seconds() -> float:
    """Processor time of what a worker's process imports."""
    done = subprocess.run([sys.executable, "-c", WORKER], check=True, capture_output=True, text=True)
    return float(done.stdout)


def _page(rounds: list[dict[str, float]], trivial: list[float], drivers: list[dict[str, float]]) -> str:
    """All of the page, whose sentences follow the figures."""
    computed = {step: min(seconds[step] for seconds in drivers) for step in drivers[0]}
    rows = []
    for what in rounds[0]:
        # A step that had not ended when the status was read is in the rest.
        values = [row.get(what, 0.0) for row in rounds]
        step = "imports" if what == REST else what
        of_driver = f"{computed[step]:.1f}" if step in computed else ""
        name = f"driver: {what}" if what in STEPS else what
        rows.append(f"| {name} | {statistics.median(values):.1f} | {min(values):.1f} | {of_driver} |")
    beyond = [row["all"] - own for row, own in zip(rounds, trivial, strict=True)]
    (largest, largest_cpu), (second, second_cpu) = sorted(computed.items(), key=_by_seconds)[:2]
    return PAGE.format(
        date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        rounds=len(rounds),
        cores=os.cpu_count(),
        load=os.getloadavg()[1],
        rows="\n".join(rows),
        trivial=statistics.median(trivial),
        trivial_least=min(trivial),
        beyond=statistics.median(beyond),
        beyond_least=min(beyond),
        aim=AIM_SECONDS,
        reached=REACHED if min(beyond) <= AIM_SECONDS else MISSED,
        cpu=sum(computed.values()),
        largest=f"`{largest}`",
        largest_cpu=largest_cpu,
        second=f"`{second}`",
        second_cpu=second_cpu,
        worker=_worker_seconds(),
    )


def _by_seconds(item: tuple[str, float]) -> float:
    return -item[1]


def main() -> None:
    """Submit, submit again, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    counted = range(options.rounds)
    with tempfile.TemporaryDirectory() as folder, started_head() as head:
        example = shutil.copytree(EXAMPLE, Path(folder, "digits"))
        subprocess.run([sys.executable, "train.py"], check=True, cwd=example, stdout=subprocess.DEVNULL)
        task = f"{example / 'task.py'}:make_task"
        storage = Path(folder, "runs")
        submission(head, task, storage, "warm")
        rounds = [submission(head, task, storage, f"run-{number}") for number in counted]
        trivial = [trivial_start(head, number) for number in counted]
        drivers = [driver_seconds(task, storage) for _ in counted]
    page = _page(rounds, trivial, drivers)
    (RESULTS / "submission.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
