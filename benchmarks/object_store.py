"""A run in an object store: requests for each finished unit, and an outage in its middle.

Writes benchmarks/results/object_store.md. The store is an S3 server in this process (moto); the run is the
digits task without training, in this process too, so that a unit takes milliseconds.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

import raysearch
from raysearch.artifacts import UnitLog
from raysearch.records import RunResult, RunStatus

RESULTS = Path(__file__).parent / "results"
TASK = "examples/digits/task.py:make_task"
SETTINGS = {"training": {"epochs": 0}, "cluster": {"workers": 0}}
PAGE = """\
# A run in an object store

{date}. Made by `benchmarks/object_store.py`: `{task}` under `avg_bits<=3` without training,
on an S3 server in the same process (moto), beside other work on two cores.

| | requests | finished units | requests a unit | seconds |
|---|---|---|---|---|
| the whole run | {total} | {units} | {each:.2f} | {seconds:.0f} |
| of these until the search is over | {before} | {units} | {before_each:.2f} | |
| the same on a local disk | | {units} | | {local_seconds:.0f} |

Requests by kind: {kinds}. Units of the same five seconds go as one
object; status, log and sign of life are written every five to ten seconds; a stage's record and the hash list
beside it cost two requests.

## An outage of {outage} seconds in the middle of the search

The run went on by itself, took {outage_seconds:.0f} s and gave {sameness}.
"""


class ObjectStore:
    """A server with one bucket, which counts what it is asked; while it is cut off it refuses everything."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.is_cut_off = False
        self._application = DomainDispatcherApplication(create_backend_app)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = make_server("127.0.0.1", 0, self.answer, threaded=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.endpoint = f"127.0.0.1:{server.server_port}"
        bucket = urllib.request.Request(f"http://{self.endpoint}/bucket", method="PUT")
        urllib.request.urlopen(bucket).close()
        self.requests.clear()

    def uri(self, path: str) -> str:
        """Of a folder in the bucket."""
        return f"s3://bucket/{path}?endpoint_override={self.endpoint}&scheme=http"

    def answer(self, environ: Any, start_response: Any) -> Any:
        """One request."""
        if self.is_cut_off:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Length", "0")])
            return []
        self.requests[environ["REQUEST_METHOD"]] += 1
        return self._application(environ, start_response)


class Watch:
    """Counts finished units, and does something once in the middle of the search."""

    def __init__(self, store: ObjectStore, outage: float) -> None:
        self.store, self.outage = store, outage
        self.stages: list[tuple[str, int]] = []
        self.is_over = False

    def __call__(self, status: RunStatus) -> None:
        """A listener of the run."""
        if status.stage != (self.stages[-1][0] if self.stages else ""):
            self.stages.append((status.stage, sum(self.store.requests.values())))
        if self.outage and not self.is_over and status.stage == "search" and status.done:
            self.is_over = True
            self.store.is_cut_off = True
            threading.Timer(self.outage, self.end).start()

    def end(self) -> None:
        """The store answers again."""
        self.store.is_cut_off = False


def run(storage: str, name: str, watch: Watch | None = None) -> tuple[RunResult, float, int]:
    """A run: its result, its seconds, and its finished units."""
    units: Counter[str] = Counter()
    append = UnitLog.append

    def counting(log: UnitLog, stage: str, key: tuple[str | int, ...], value: object) -> None:
        units[stage] += 1
        append(log, stage, key, value)  # type: ignore[arg-type]

    UnitLog.append = counting  # type: ignore[method-assign, assignment]
    began = time.monotonic()
    try:
        listener = watch or (lambda status: None)
        result = raysearch.run(TASK, "avg_bits<=3", storage, run_id=name, config=SETTINGS, listener=listener)
    finally:
        UnitLog.append = append  # type: ignore[method-assign]
    return result, time.monotonic() - began, sum(units.values())


def main() -> None:
    """Run thrice, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outage", type=float, default=15.0)
    options = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    store = ObjectStore()
    with tempfile.TemporaryDirectory() as folder:
        local, local_seconds, _ = run(folder, "run")
        watch = Watch(store, 0.0)
        in_store, seconds, units = run(store.uri("calm"), "run", watch)
        requests = Counter(store.requests)
        cut, outage_seconds, _ = run(store.uri("cut"), "run", Watch(store, options.outage))
    before = dict(reversed(watch.stages))["evaluation"]
    are_same = local.assignment == in_store.assignment == cut.assignment
    are_same = are_same and local.quantized_metrics == in_store.quantized_metrics == cut.quantized_metrics
    page = PAGE.format(
        date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        task=TASK,
        total=sum(requests.values()),
        units=units,
        each=sum(requests.values()) / units,
        before=before,
        before_each=before / units,
        seconds=seconds,
        local_seconds=local_seconds,
        kinds=", ".join(f"{count} {kind}" for kind, count in requests.most_common()),
        outage=f"{options.outage:g}",
        outage_seconds=outage_seconds,
        sameness="the same answer and metrics" if are_same else "ANOTHER ANSWER",
    )
    (RESULTS / "object_store.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
