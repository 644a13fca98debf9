"""Runs on a cluster as Ray jobs: submit, watch, wait, cancel, retrieve."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from raysearch.artifacts import RunStore, Storage, codecs, new_run_id, resolve_run, retrieve, valid_run_id
from raysearch.cluster.jobs import (
    JobState,
    find_job,
    follow_job_logs,
    job_logs,
    job_status,
    stop_job,
    submit_job,
)
from raysearch.errors import ConfigError, JobError, StorageError
from raysearch.records import TERMINAL_STATES, RunStatus, parse_budgets

if TYPE_CHECKING:
    from raysearch.config import Config

START_SECONDS = 20.0
"""For which a cancelled job that is about to start is waited for."""
POLL_SECONDS = 2.0
MAX_COMMAND_BYTES = 120_000
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Job:
    """A submitted run.

    Attributes:
        run_id: the run.
        storage: where its folder is.
        address: the cluster's dashboard.
        token_file: file with the cluster's token, if it is not in one of the usual places.
    """

    run_id: str
    storage: str
    address: str
    token_file: str | None = None

    def status(self) -> RunStatus:
        """The run's status; before the run has a folder, the job's."""
        return job_run_status(self.run_id, self.storage, self.address, token_file=self.token_file)

    def wait(self, timeout: float | None = None) -> RunStatus:
        """Wait until the run ends; see `wait_for`."""
        return wait_for(self.run_id, self.storage, self.address, timeout=timeout, token_file=self.token_file)

    def logs(self) -> str:
        """All that the job has printed so far."""
        return job_logs(self.address, self._job(), token_file=self.token_file)

    def follow(self) -> Iterator[str]:
        """What the job prints, as it comes, until it ends."""
        return follow_job_logs(self.address, self._job(), token_file=self.token_file)

    def cancel(self) -> RunStatus:
        """Stop the job; see `cancel`."""
        return cancel(self.run_id, self.storage, self.address, token_file=self.token_file)

    def retrieve(self, to: str | os.PathLike[str]) -> Path:
        """Copy the finished run to a local folder; see `raysearch.retrieve`."""
        return retrieve(self.run_id, self.storage, to)

    def _job(self) -> str:
        return find_job(self.address, self.run_id, token_file=self.token_file)


def submit(
    task: str,
    budget: str | Sequence[str],
    storage: str | os.PathLike[str],
    *,
    address: str,
    minimize: str | None = None,
    max_drop: str | Mapping[str, float | str] | None = None,
    config: Config | None = None,
    run_id: str | None = None,
    resume: bool = False,
    working_dir: str | os.PathLike[str] | None = None,
    python: str = "python",
    pip: Sequence[str] = (),
    env_vars: Mapping[str, str] | None = None,
    shared_fs: bool = False,
    token_file: str | None = None,
) -> Job:
    """Start `raysearch run` on a Ray cluster.

    raysearch must be installed on the cluster's nodes (or come by `pip`). The working directory is
    uploaded; the task file lies in it.

    Args:
        task: `path/to/file.py:factory`, or `package.module:factory` that the nodes can import.
        budget: one expression, or several; may be empty with `minimize`.
        storage: URI or folder that every node can reach.
        address: the cluster's dashboard, such as "http://HEAD:8265".
        minimize: see `run`.
        max_drop: see `run`.
        config: settings of the run; the content of files that they name travels with them.
        run_id: name of the run; made from the time by default.
        resume: go on with the run `run_id`.
        working_dir: folder to upload; default: the current folder if the task file is below it, else the
            task file's folder.
        python: the interpreter on the head's PATH that has raysearch.
        pip: requirements to install for the job.
        env_vars: variables for the job; anyone who can see the cluster can read them.
        shared_fs: the local folder `storage` is one that all nodes share.
        token_file: file with the cluster's token.

    Raises:
        ConfigError: the storage cannot be reached from the cluster, a path is wrong, or the settings are more
            than a command line holds.
        BudgetError: the budget cannot be read.
        JobError: the cluster refuses the job or cannot be reached.
    """
    # Brings torch along, which looking after a run does not need.
    from raysearch.config import Config, settings_as_text, with_search

    texts = (budget,) if isinstance(budget, str) else tuple(budget)
    settings = config or Config()
    if minimize is not None or max_drop is not None:
        settings = with_search(settings, minimize=minimize, max_drop=max_drop)
    if texts or settings.search.minimized_kind is None:
        parse_budgets(texts)
    name = valid_run_id(run_id) if run_id else new_run_id()
    where = _storage_for(storage, address, shared_fs)
    folder, spec = _working_dir(task, working_dir)
    command = [python, "-m", "raysearch", "run", spec, "--storage", where, "--run-id", name]
    command += ["--address", "auto"]
    command += [part for text in texts for part in ("--budget", text)]
    command += [part for text in settings_as_text(settings) for part in ("--set", text)]
    if resume:
        command.append("--resume")
    _check_length(command)
    submit_job(
        address,
        command,
        name,
        job_id=f"{name}-{new_run_id()}" if resume else name,
        working_dir=folder,
        env_vars=env_vars,
        pip=pip,
        token_file=token_file,
    )
    return Job(name, where, address, token_file)


def job_run_status(
    run: str, storage: str | None, address: str | None = None, *, token_file: str | None = None
) -> RunStatus:
    """A run's status from its folder; with an address also the job's word on it.

    Raises:
        StorageError: no such run, and no address to ask.
        JobError: the cluster does not know the job.
    """
    try:
        status = resolve_run(run, storage).load(codecs.STATUS)
    except StorageError:
        if address is None:
            raise
        return _from_job(run, _newest(run, address, token_file))
    if address is None or status.state == "done":
        return status
    if status.state == "running":
        job = _newest(run, address, token_file)
        ended = replace(_from_job(run, job), stage=status.stage, seconds=status.seconds)
        return ended if job.is_final else status
    # A run that was stopped or failed may have been submitted again, and its new job not yet begun.
    with suppress(JobError):
        job = _newest(run, address, token_file)
        if not job.is_final:
            return replace(_from_job(run, job), seconds=status.seconds)
    return status


def wait_for(
    run: str,
    storage: str | None,
    address: str | None = None,
    *,
    timeout: float | None = None,
    token_file: str | None = None,
) -> RunStatus:
    """Wait until a run is done, failed or cancelled.

    With an address a job that ended without a word (killed, or its environment failed) is noticed too.

    Raises:
        JobError: the timeout passed.
    """
    started = time.monotonic()
    while True:
        status = job_run_status(run, storage, address, token_file=token_file)
        if status.state in TERMINAL_STATES:
            return status
        if timeout is not None and time.monotonic() - started > timeout:
            raise JobError(f"the run '{run}' is still {status.state} ({status.stage}) after {timeout:g} s.")
        time.sleep(POLL_SECONDS)


def cancel(run: str, storage: str | None, address: str, *, token_file: str | None = None) -> RunStatus:
    """Stop a run's job; what it finished stays, and `--resume` goes on with it.

    Raises:
        JobError: the cluster does not know the job.
    """
    job_id = find_job(address, run, token_file=token_file)
    # Ray can lose the process of a job that is stopped before it runs.
    deadline = time.monotonic() + START_SECONDS
    while job_status(address, job_id, token_file=token_file).status == "PENDING":
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS / 4)
    stop_job(address, job_id, token_file=token_file)
    while not job_status(address, job_id, token_file=token_file).is_final:
        time.sleep(POLL_SECONDS / 4)
    try:
        store: RunStore | None = resolve_run(run, storage)
        status = store.load(codecs.STATUS) if store is not None else None
    except StorageError:
        store, status = None, None
    if status is None or store is None:
        return RunStatus(run, "cancelled", message="stopped before it had a folder")
    if status.state not in TERMINAL_STATES:
        # A job is killed three seconds after it is asked to stop, which may be too soon for its own word.
        status = replace(status, state="cancelled", updated=time.time(), message="stopped from outside")
        store.save(codecs.STATUS, status)
    return status


def _check_length(command: Sequence[str]) -> None:
    """A shell takes the job's command as one argument, and Linux up to 128 KiB in one."""
    size = len(shlex.join(command).encode())
    if size > MAX_COMMAND_BYTES:
        raise ConfigError(
            f"the settings take {size:,} bytes of command line, and {MAX_COMMAND_BYTES:,} fit. Put them, and "
            "the files that they name, into the working directory, and start `raysearch run -c FILE` there."
        )


def _storage_for(storage: str | os.PathLike[str], address: str, shared_fs: bool) -> str:
    place = Storage(storage)
    host = urlsplit(address if "://" in address else f"//{address}").hostname
    if place.is_local and host not in LOOPBACK and not shared_fs:
        raise ConfigError(
            f"the storage '{storage}' is a folder of this machine, and the cluster at {address} is another "
            f"one. Use an object store such as s3://bucket/runs, or say that all nodes share the folder: "
            f"--shared-fs."
        )
    return place.uri


def _working_dir(task: str, given: str | os.PathLike[str] | None) -> tuple[Path | None, str]:
    location, _, factory = task.rpartition(":")
    if not location.endswith(".py"):
        return (Path(given).absolute() if given else None), task
    file = Path(location).expanduser().resolve()
    if not file.is_file():
        raise ConfigError(f"the task file '{location}' does not exist (looked at {file}).")
    here = Path.cwd().resolve()
    folder = Path(given).resolve() if given else (here if file.is_relative_to(here) else file.parent)
    if not file.is_relative_to(folder):
        raise ConfigError(f"the task file {file} is not below the working directory {folder}.")
    return folder, f"{file.relative_to(folder)}:{factory}"


def _newest(run: str, address: str, token_file: str | None) -> JobState:
    return job_status(address, find_job(address, run, token_file=token_file), token_file=token_file)


def _from_job(run: str, job: JobState) -> RunStatus:
    states = {"SUCCEEDED": "done", "STOPPED": "cancelled", "FAILED": "failed"}
    state = states.get(job.status, "running")
    return RunStatus(run, state, stage=f"job {job.status.lower()}", message=job.message)
