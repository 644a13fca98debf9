"""What passes between `raysearch submit` and the first finished unit on a warm head, second by second.

Writes benchmarks/results/submission.md. The head is a real one on this machine (a token, three CPUs), the
task that of examples/digits; the first submission warms the head and is not counted.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import raysearch
from raysearch.artifacts import RunStore, codecs
from raysearch.cluster.jobs import JobRequest, JobsClient
from raysearch.errors import RaysearchError
from tests.support.ray_head import Head, started_head

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
TASK = "examples/digits/task.py:make_task"
POLL_SECONDS = 0.05
STEPS = ("imports", "task", "cluster", "checks", "preflight", "workers")
PAGE = """\
# From `submit` to the first unit

{date}. Made by `tests/support/submission.py`: `{task}` on a warm head on this
machine, {rounds} submissions, {cores} cores with other work on them (load average {load:.0f}). Seconds of
wall time, so neighbours are in them.

| what | median | least |
|---|---|---|
{rows}

A job of Ray's that only prints the time starts {trivial:.1f} s after it was submitted
({trivial_least:.1f} at least): that is Ray's own job start. Beyond it a run takes {beyond:.1f} s
({beyond_least:.1f} at least) until its first unit is done.
"""


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


def submission(head: Head, storage: Path, name: str) -> dict[str, float]:
    """What one submission spent its seconds on."""
    config = raysearch.load_config(assignments=["training.epochs=0", "cluster.device=cpu"])
    began = time.time()
    job = raysearch.submit(
        TASK, "avg_bits<=3", storage, address=head.address, config=config, run_id=name,
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
        "submit: checks, upload, request": submitted - began,
        **{f"driver: {step}": value for step, value in before.items()},
        "Ray's job start, Python's start and imports, first unit with its worker's start": rest,
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


def main() -> None:
    """Submit, submit again, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, started_head() as head:
        submission(head, Path(folder), "warm")
        rounds = [submission(head, Path(folder), f"run-{number}") for number in range(options.rounds)]
        trivial = [trivial_start(head, number) for number in range(options.rounds)]
    columns = {what: [row[what] for row in rounds] for what in rounds[0]}
    rows = [
        f"| {what} | {statistics.median(values):.1f} | {min(values):.1f} |"
        for what, values in columns.items()
    ]
    beyond = [row["all"] - own for row, own in zip(rounds, trivial, strict=True)]
    page = PAGE.format(
        date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        task=TASK,
        rounds=options.rounds,
        cores=os.cpu_count(),
        load=os.getloadavg()[0],
        rows="\n".join(rows),
        trivial=statistics.median(trivial),
        trivial_least=min(trivial),
        beyond=statistics.median(beyond),
        beyond_least=min(beyond),
    )
    (RESULTS / "submission.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
