"""Runs on a cluster of which any part is killed at any moment: driver, workers, nodes, storage server."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from raysearch.artifacts import RunStore, Storage, codecs
from raysearch.errors import RaysearchError
from tests.chaos.runs import RUN_ID, SETTINGS, outcome_of
from tests.support.command_line import ROOT, TOY
from tests.support.object_store import ObjectStore, started_store
from tests.support.patience import HANG_SECONDS
from tests.support.ray_head import Head, processes_of, second_node, started_head

MOST_STARTS = 6
OUTAGE_SECONDS = 5.0
STAGES = ("calibration", "sensitivity", "search")
"""Of which one is drawn for the moment of each kill."""
TRAINER = "training worker"
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
    """A run for each kind, in which that is killed once at a moment that is drawn.

    Args:
        kinds: of "driver", "actor", "training worker", "raylet", "head" and "storage".
        seed: of the draws.
        scratch: a folder.

    Returns:
        How many of each hit a run that was going on, and what was other than it should be.
    """
    draw = random.Random(f"cluster/{seed}")
    hits: Counter[str] = Counter()
    wrong: list[str] = []
    with contextlib.closing(Machines()) as machines:
        expected: dict[bool, object] = {}
        for number, kind in enumerate(kinds):
            # Half of a run's time is the start of its training.
            trains = kind == TRAINER
            if trains not in expected:
                expected[trains] = _outcome(machines, f"calm-{trains}", None, trains, draw, scratch, hits)
            outcome = _outcome(machines, f"{seed}-{number}", kind, trains, draw, scratch, hits)
            told = outcome if isinstance(outcome, str) else ""
            if told or outcome != expected[trains]:
                wrong.append(f"{kind}, run {number} of seed {seed}: {told or 'another result'}")
            print(f"{kind}: {told or ('same' if outcome == expected[trains] else 'another')}", flush=True)
    return hits, wrong


def _outcome(
    machines: Machines,
    name: str,
    kind: str | None,
    trains: bool,
    draw: random.Random,
    scratch: Path,
    hits: Counter[str],
) -> object:
    """What a run gives in the end, or how it failed."""
    storage = machines.store.uri(name)
    stage = "training" if trains else draw.choice(STAGES)
    log = scratch / f"{name}.log"
    driver = _start(machines, storage, trains, log)
    if kind is not None:
        _wait_for(storage, stage, driver)
        time.sleep(draw.uniform(0, 3))
        if driver.poll() is None and _kill(machines, kind, driver):
            hits[kind] += 1
    for _ in range(MOST_STARTS):
        if driver.wait(HANG_SECONDS) == 0:
            break
        driver = _start(machines, storage, trains, log)
    else:
        return f"gave up: {log.read_text()[-600:]}"
    folder = scratch / name / RUN_ID
    for file in Storage(storage).child(RUN_ID).list():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(Storage(storage).child(RUN_ID).read_bytes(file))
    return outcome_of(folder)


def _kill(machines: Machines, kind: str, driver: subprocess.Popen[bytes]) -> bool:
    if kind == "driver":
        driver.kill()
        return True
    if kind in ("actor", TRAINER):
        title = {"actor": "ray::ReplicaWorker", TRAINER: "ray::RayTrainWorker"}[kind]
        # It may be on its way.
        return any(machines.kill_worker(title) or time.sleep(0.2) for _ in _while_running(driver))
    kills = {"raylet": machines.kill_raylet, "head": machines.kill_head, "storage": machines.kill_storage}
    return kills[kind]()


def _while_running(driver: subprocess.Popen[bytes]) -> Iterator[None]:
    while driver.poll() is None:
        yield


def _wait_for(storage: str, stage: str, driver: subprocess.Popen[bytes]) -> None:
    """Until a run is in a stage, or behind it, or its driver has ended."""
    later = ORDER[ORDER.index(stage) :]
    for _ in _while_running(driver):
        with contextlib.suppress(RaysearchError):
            if RunStore(storage, RUN_ID).load(codecs.STATUS).stage.startswith(later):
                return
        time.sleep(0.1)


def _start(machines: Machines, storage: str, trains: bool, log: Path) -> subprocess.Popen[bytes]:
    """A driver that begins the run, or goes on with it."""
    command = [sys.executable, "-m", "raysearch", "run", f"{TOY}:make_task", "--budget", "avg_bits<=3.5"]
    command += ["--storage", storage, "--run-id", RUN_ID, "--address", f"127.0.0.1:{machines.head.port}"]
    settings = SETTINGS if trains else [*SETTINGS, "training.epochs=0"]
    command += ["--workers", "2", *(part for text in settings for part in ("--set", text))]
    if Storage(storage).child(RUN_ID).exists("run.json"):
        command.append("--resume")
    token = {"RAYSEARCH_TOKEN": machines.head.token_file.read_text()}
    with log.open("a") as file:
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | token, stdout=file, stderr=file)


def main() -> int:
    """Kills of the kinds that are named, and a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.cluster_kills")
    parser.add_argument("kinds", nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        hits, wrong = kill_on_cluster(options.kinds, options.seed, Path(folder))
    print(f"hits: {dict(hits)}", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
