"""The status of a run while it lives: one record, written to its folder and told to a listener."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from raysearch.artifacts import Bulletin, RunStore, codecs
from raysearch.callbacks import Followers
from raysearch.errors import DamagedFileError
from raysearch.records import RunStatus, TrainingStatus

_log = logging.getLogger(__name__)

Listener = Callable[[RunStatus], None]

WRITE_EVERY_SECONDS = 1.0
RATE_SECONDS = 60.0


class RateMeter:
    """Units a second over the last `RATE_SECONDS`, or over the last unit where one takes longer.

    Units that a resumed run reads are not counted: measuring begins with the first count of a stage, and
    again when its count goes back.
    """

    def __init__(self) -> None:
        self._stage = ""
        self._done = 0
        self._points: deque[tuple[float, int]] = deque()

    def measure(self, stage: str, done: int, now: float) -> float:
        """Take in a count at a time in seconds, and give the rate; 0 while nothing was finished.

        Args:
            stage: whose units are counted.
            done: finished units of the stage.
            now: seconds on a clock that never goes back.
        """
        if stage != self._stage or done < self._done:
            self._points.clear()
        self._stage = stage
        self._done = done
        if not self._points or now - self._points[-1][0] >= WRITE_EVERY_SECONDS:
            self._points.append((now, done))
        while len(self._points) > 1 and now - self._points[1][0] >= RATE_SECONDS:
            self._points.popleft()
        since, first_done = self._points[0]
        return (done - first_done) / (now - since) if now > since else 0.0


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the time that something takes to what its name has taken already."""
    started = time.monotonic()
    try:
        yield
    finally:
        seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - started, 3)


class Preparation:
    """Tells and times what a run does before it has a folder.

    Args:
        run_id: the run's.
        listener: is told of each step.
    """

    def __init__(self, run_id: str, listener: Listener) -> None:
        self._run_id = run_id
        self._listener = listener
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Say that a step begins, time it, and say where it fails: a listener is told of every end."""
        self.tell(name)
        try:
            with timed(self.seconds, name):
                yield
        except Exception as error:
            failed = RunStatus(self._run_id, "failed", name, updated=time.time(), message=str(error))
            self._listener(failed)
            raise

    def tell(self, name: str, done: int = 0, total: int = 0) -> None:
        """Say how far a step is."""
        self._listener(RunStatus(self._run_id, "running", name, done, total, updated=time.time()))


class Progress:
    """Keeps `status.json` current.

    Unit counts are written at most once a second, since an object store takes a request each; changes of
    stage and state are written at once.

    Args:
        store: the run's folder.
        listener: is told of every status.
        before: seconds of what was done before there was a folder.
        followers: are told of stages, trials and training.
    """

    def __init__(
        self,
        store: RunStore,
        listener: Listener,
        before: Mapping[str, float] | None = None,
        followers: Followers | None = None,
    ) -> None:
        self.followers = followers or Followers()
        self._store = store
        self._bulletin = Bulletin(store.storage, codecs.STATUS.files[0])
        self._listener = listener
        self._written = 0.0
        self._meter = RateMeter()
        self._best: dict[str, float] = {}
        self.seconds = dict(before or {})
        if store.has(codecs.STATUS):
            # A run that goes on adds to the times of its earlier attempts, and goes on without them as well.
            with suppress(DamagedFileError):
                earlier = store.load(codecs.STATUS).seconds
                self.seconds = {**earlier, **{k: v + earlier.get(k, 0.0) for k, v in self.seconds.items()}}
        self._status = RunStatus(store.run_id, "running", seconds=self.seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; what an interrupted attempt spent on it is added to."""
        before = self.seconds.get(name, 0.0)
        self._best = {}
        self.tell("running", name)
        try:
            with timed(self.seconds, name):
                yield
        finally:
            taken = self.seconds[name] - before
            _log.info("%s took %.1f s", name, taken)
            self.followers.tell("on_stage", name, taken)
            self.tell("running", name, done=self._status.done, total=self._status.total)

    def units(self, stage: str, done: int, total: int, details: Mapping[str, Any] | None = None) -> None:
        """Finished units of a stage, with their rate and the time that the rest will take.

        Args:
            stage: the stage, or the part of one.
            done: finished units.
            total: all units, as far as they are known.
            details: see `RunStatus`.
        """
        now = time.monotonic()
        rate = self._meter.measure(stage, done, now)
        remaining = round(max(0, total - done) / rate, 1) if rate and total else None
        status = self._record("running", stage, done, total, "")
        if not details and self._best:
            details = {"best": self._best}
        self._status = replace(
            status, rate=round(rate, 4), remaining_seconds=remaining, details=details or {}
        )
        self._listener(self._status)
        if now - self._written >= WRITE_EVERY_SECONDS or done == total:
            self._written = now
            self._write()

    def best(self, name: str, value: float) -> None:
        """The best value so far of what the stage measures; told with its next units."""
        self._best = {name: value}

    def training(self, status: TrainingStatus) -> None:
        """What training says: its steps are the stage's units."""
        if status.message:
            self.tell("running", message=status.message)
            return
        self.followers.tell("on_epoch" if status.loss is None else "on_step", status)
        details: dict[str, Any] = {"epoch": status.epoch + 1}
        if status.epochs:
            details["epochs"] = status.epochs
        if status.loss is not None:
            details |= {"loss": status.loss, "learning_rate": status.learning_rate}
        if status.samples and self._status.rate:
            details["samples_per_second"] = round(status.samples * self._status.rate, 1)
        details["validation"] = dict(status.validation)
        self.units("training", status.step, status.steps, details)

    def remark(self, text: str) -> None:
        """Say what a running stage waits for; "" when it goes on."""
        if text:
            _log.info("%s", text)
        self._status = replace(self._status, message=text, updated=time.time())
        self._listener(self._status)
        self._write()

    def tell(self, state: str, stage: str = "", done: int = 0, total: int = 0, message: str = "") -> None:
        """Write and tell a change of stage or state.

        Args:
            state: "running", "done", "failed" or "cancelled".
            stage: the stage that begins; "" stays in the one before.
            done: finished units of the stage.
            total: all of its units.
            message: why the run ended, for people.
        """
        before = self._status
        self._status = self._record(state, stage or before.stage, done, total, message)
        if message or (before.state, before.stage) != (state, self._status.stage):
            _log.info("%s, %s%s", state, self._status.stage, f": {message}" if message else "")
        self._listener(self._status)
        self._write()

    def end(self) -> None:
        """Write and tell that the run is done, which others wait for.

        Raises:
            StorageError: it cannot be written.
        """
        self._status = self._record("done", self._status.stage, 0, 0, "")
        _log.info("done")
        self._listener(self._status)
        self._bulletin.close()
        self._store.save(codecs.STATUS, self._status)

    def close(self) -> None:
        """Write what is not written yet, as far as the storage can be reached."""
        self._bulletin.close()

    def _write(self) -> None:
        (data,) = codecs.STATUS.write(self._status)
        self._bulletin.write(bytes(data))

    def _record(self, state: str, stage: str, done: int, total: int, message: str) -> RunStatus:
        seconds = dict(self.seconds)
        return RunStatus(self._store.run_id, state, stage, done, total, seconds, time.time(), message)


@contextmanager
def reporting(progress: Progress, remark: str = "", way_on: str = "") -> Iterator[Progress]:
    """Say in the run's folder how it ends.

    Args:
        progress: keeps the run's status.
        remark: what is told when it starts.
        way_on: a command that goes on with the run, for when it is stopped; an interrupt carries it too.
    """
    progress.tell("running", "starting", message=remark)
    try:
        yield progress
    except KeyboardInterrupt as stopped:
        message = "stopped from outside; --resume goes on with it"
        if way_on:
            message = f"stopped from outside; it goes on with\n  {way_on}"
        progress.tell("cancelled", message=message)
        stopped.args = (message,)
        raise
    except Exception as error:
        progress.tell("failed", message=str(error))
        raise
    else:
        progress.end()
    finally:
        progress.close()


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn SIGTERM, by which a job is stopped, into an interrupt; after `ray.init`, which sets its own."""
    # Python lets the main thread alone set handlers; elsewhere the run is stopped by other means.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
