"""Runs on a cluster of which any part is killed at any moment: driver, workers, nodes, storage server."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from raysearch.artifacts import RunStore, Storage, codecs
from raysearch.errors import RaysearchError
from tests.chaos.runs import RUN_ID, SETTINGS, outcome_of, run_toy
from tests.support.command_line import ROOT, TOY
from tests.support.object_store import ObjectStore, started_store
from tests.support.patience import HANG_SECONDS
from tests.support.ray_head import Head, processes_of, second_node, started_head

RESULTS = ROOT / "benchmarks" / "results" / "cluster_kills.md"
KILLS_A_RUN = 8
MOST_STARTS = 16
MOST_WAIT = 1.0
"""Seconds that a stage is let go on before a kill, at most."""
OUTAGE_SECONDS = 5.0
STAGES = ("calibration", "sensitivity", "search")
"""Of which one is drawn for the moment of each kill."""
TRAINER = "training worker"
PARTS = {
    "driver": "driver",
    "actor": "worker of the fleet",
    TRAINER: "training worker",
    "raylet": "raylet of the second node, with its workers",
    "head": "every process of the head",
    "storage": "storage server",
}
PAGE = """\
# Parts of a cluster, killed in the middle of a run

{date}, `python -m tests.chaos.cluster_kills`: a head with a token, a second node and an S3 server on one
machine with two cores that others used as well. In each run several parts are ended by SIGKILL, one after
another (the S3 server refuses connections for five seconds), each at a moment that is drawn; the part is put
back, and a driver that ended is started again with `--resume`. A result is the same when records, metrics,
assignment, checkpoints and model have the bits of a run in one process that nothing disturbed. A kill counts
where a driver was at work.

| killed | times | same result | anything else |
|---|---|---|---|
{rows}

{runs} runs lost {kills} parts, the one that lost most {most}. Runs that a time limit of the machine cut
off are not counted.
{others}"""
ORDER = (*STAGES, "refinement", "training", "evaluation", "export")


class Machines:
    """A head, a second node and an object store, each of which may die and is put back."""

    def __init__(self) -> None:
        self._head = contextlib.ExitStack()
        self._node = contextlib.ExitStack()
        self._store = contextlib.ExitStack()
        self.store: ObjectStore = self._store.enter_context(started_store())
        self.head: Head
        self.start_head()

    def start_head(self) -> None:
        """With its second node."""
        self.head = self._head.enter_context(started_head())
        self._lose_node: Callable[[], None] = self._node.enter_context(second_node(self.head))

    def close(self) -> None:
        """End all of it."""
        self._node.close()
        self._head.close()
        self._store.close()

    def kill_raylet(self) -> bool:
        """End the second node; another takes its place."""
        self._lose_node()
        self._node.close()
        self._lose_node = self._node.enter_context(second_node(self.head))
        return True

    def kill_head(self) -> bool:
        """End every process of the cluster at once; another cluster takes its place."""
        for pid in processes_of(self.head.folder):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self._node.close()
        self._head.close()
        self.start_head()
        return True

    def kill_storage(self) -> bool:
        """End the storage's server for a while; connections are refused meanwhile."""
        self.store.go_away()
        time.sleep(OUTAGE_SECONDS)
        self.store.come_back()
        return True

    def kill_worker(self, title: str) -> bool:
        """End one process of the cluster whose title begins so."""
        nodes = set(processes_of(self.head.folder))
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError, IndexError):
                parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
                if path.read_text().startswith(title) and parent in nodes:
                    os.kill(int(path.parent.name), signal.SIGKILL)
                    return True
        return False


def kill_on_cluster(kinds: list[str], seed: int, scratch: Path) -> tuple[Counter[str], list[str]]:
    """Runs in each of which several parts are killed, each at a moment that is drawn.

    What a run must give is what the same run gives in this process, where nothing dies.

    Args:
        kinds: names of `PARTS`; each run loses `KILLS_A_RUN` of them.
        seed: of the draws.
        scratch: a folder.

    Returns:
        How many of each hit a run that was going on, and what was other than it should be.
    """
    draw = random.Random(f"cluster/{seed}")
    hits: Counter[str] = Counter()
    wrong: list[str] = []
    expected: dict[bool, object] = {}
    with contextlib.closing(Machines()) as machines:
        for start in range(0, len(kinds), KILLS_A_RUN):
            group = kinds[start : start + KILLS_A_RUN]
            # Half of a run's time is the start of its training.
            trains = TRAINER in group
            if trains not in expected:
                calm = scratch / f"calm-{trains}"
                run_toy(calm, settings=_settings(trains))
                expected[trains] = outcome_of(calm / RUN_ID)
            run = DoomedRun(machines, scratch / f"{seed}-{start}", trains)
            outcome = run.lose(group, draw)
            told = outcome if isinstance(outcome, str) else "same" if outcome == expected[trains] else "other"
            if told != "same":
                wrong.append(f"{group}, run {start} of seed {seed}: {told}")
            hits.update(run.hits)
            print(f"{', '.join(run.hits) or 'nothing'}: {told}", flush=True)
    return hits, wrong


class DoomedRun:
    """A run on machines of which parts are killed, that is started again until it is done.

    Attributes:
        hits: what was killed while a driver was going on.
    """

    def __init__(self, machines: Machines, folder: Path, trains: bool) -> None:
        self._machines = machines
        self._folder = folder
        self._trains = trains
        self._storage = machines.store.uri(folder.name)
        self._log = folder.with_suffix(".log")
        self._num_starts = 0
        self.hits: list[str] = []
        self._driver = self._start()

    def lose(self, kinds: list[str], draw: random.Random) -> object:
        """Kill these one after the other; what the run gives in the end, or how it failed."""
        stages = sorted((draw.choice(STAGES) for _ in kinds), key=ORDER.index)
        for kind, stage in zip(sorted(kinds, key=TRAINER.__eq__), stages, strict=True):
            self._wait_for("training" if kind == TRAINER else stage)
            time.sleep(draw.uniform(0, MOST_WAIT))
            if self._driver.poll() is None and self._kill(kind):
                self.hits.append(kind)
        while self._driver.wait(HANG_SECONDS) != 0:
            if self._num_starts == MOST_STARTS:
                return f"gave up: {self._log.read_text()[-600:]}"
            self._driver = self._start()
        folder = self._folder / RUN_ID
        storage = Storage(self._storage).child(RUN_ID)
        for file in storage.list():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(storage.read_bytes(file))
        return outcome_of(folder)

    def _wait_for(self, stage: str) -> None:
        """Until the run is in a stage, or behind it, or done; a driver that died is started again."""
        later = ORDER[ORDER.index(stage) :]
        while (code := self._driver.poll()) != 0:
            if code is not None:
                if self._num_starts == MOST_STARTS:
                    return
                self._driver = self._start()
            with contextlib.suppress(RaysearchError):
                status = RunStore(self._storage, RUN_ID).load(codecs.STATUS)
                if status.stage.startswith(later) and status.state == "running":
                    return
            time.sleep(0.1)

    def _kill(self, kind: str) -> bool:
        machines = self._machines
        if kind == "driver":
            self._driver.kill()
            self._driver.wait()
            return True
        if kind in ("actor", TRAINER):
            title = {"actor": "ray::ReplicaWorker", TRAINER: "ray::RayTrainWorker"}[kind]
            # It may be on its way.
            while self._driver.poll() is None:
                if machines.kill_worker(title):
                    return True
                time.sleep(0.1)
            return False
        kills = {"raylet": machines.kill_raylet, "head": machines.kill_head, "storage": machines.kill_storage}
        return kills[kind]()

    def _start(self) -> subprocess.Popen[bytes]:
        """A driver that begins the run, or goes on with it."""
        self._num_starts += 1
        head = self._machines.head
        command = [sys.executable, "-m", "raysearch", "run", f"{TOY}:make_task", "--budget", "avg_bits<=3.5"]
        command += ["--storage", self._storage, "--run-id", RUN_ID, "--address", f"127.0.0.1:{head.port}"]
        settings = _settings(self._trains)
        command += ["--workers", "2", *(part for text in settings for part in ("--set", text))]
        if Storage(self._storage).child(RUN_ID).exists("run.json"):
            command.append("--resume")
        token = {"RAYSEARCH_TOKEN": head.token_file.read_text()}
        with self._log.open("a") as file:
            return subprocess.Popen(command, cwd=ROOT, env=os.environ | token, stdout=file, stderr=file)


def _settings(trains: bool) -> list[str]:
    """Of a search that is longer than the kills take; each shard of a trial is a unit."""
    settings = [*SETTINGS, "search.num_trials=128", "search.batch_size=2", "search.shard_size=4"]
    return settings if trains else [*settings, "training.epochs=0"]


def page(logs: Iterable[Path]) -> str:
    """The results page of what `main` printed, in several pieces."""
    same: Counter[str] = Counter()
    other: Counter[str] = Counter()
    losses: list[int] = []
    others: list[str] = []
    for line in (line for log in logs for line in log.read_text().splitlines()):
        named, _, told = line.partition(": ")
        kinds = named.split(", ")
        if not told or not set(kinds) <= set(PARTS):
            continue
        losses.append(len(kinds))
        (same if told == "same" else other).update(kinds)
        if told != "same":
            others.append(f"- {line}\n")
    rows = [f"| {what} | {same[k] + other[k]} | {same[k]} | {other[k]} |" for k, what in PARTS.items()]
    rows.append(f"| together | {sum(losses)} | {same.total()} | {other.total()} |")
    return PAGE.format(
        date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        rows="\n".join(rows),
        runs=len(losses),
        kills=sum(losses),
        most=max(losses),
        others="".join(others),
    )


def main() -> int:
    """Kills of the kinds that are named, and a line for each run; or the page of such lines."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.cluster_kills")
    parser.add_argument("kinds", nargs="*", choices=[*PARTS, []])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", nargs="+", type=Path, metavar="LOG", help="write the results page of these")
    options = parser.parse_args()
    if options.page:
        RESULTS.write_text(page(options.page))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        hits, wrong = kill_on_cluster(options.kinds, options.seed, Path(folder))
    print(f"hits: {dict(hits)}", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
