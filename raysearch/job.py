"""Runs on a cluster as Ray jobs: submit, watch, wait, cancel, retrieve."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from raysearch.artifacts import (
    DRIVER_LOG,
    RunStore,
    Storage,
    codecs,
    current_status,
    has_keys,
    new_run_id,
    resolve_run,
    retrieve,
    valid_run_id,
)
from raysearch.cluster.jobs import LOOPBACK, JobRequest, JobsClient, JobState
from raysearch.cluster.upload import EXCLUDES, read_upload
from raysearch.cluster.versions import CLIENT_VARIABLE, as_text, versions_here
from raysearch.errors import ConfigError, JobError, StorageError
from raysearch.records import TERMINAL_STATES, RunStatus, parse_budgets

if TYPE_CHECKING:
    from raysearch.config import Config

START_SECONDS = 20.0
"""For which a cancelled job that is about to start is waited for."""
POLL_SECONDS = 2.0
MAX_COMMAND_BYTES = 120_000
_ERROR = re.compile(r"\w+Error: ")


@dataclass(frozen=True)
class Job:
    """A submitted run: its folder, and the newest of its jobs on a cluster.

    Attributes:
        run_id: the run.
        storage: where its folder is.
        address: the cluster's dashboard; None asks the folder alone, which knows neither logs nor a job that
            ended without a word.
        token_file: file with the cluster's token, if it is not in one of the usual places.
        ca_file: the authority by which the certificate of an https address is checked (PEM); by default those
            that are usual.
    """

    run_id: str
    storage: str
    address: str | None = None
    token_file: str | None = None
    ca_file: str | None = None

    def status(self) -> RunStatus:
        """The run's status from its folder, and with an address also the cluster's word on it.

        Raises:
            StorageError: there is no such run, and no address to ask.
            JobError: the cluster does not know the job.
        """
        try:
            status = current_status(resolve_run(self.run_id, self.storage))
        except StorageError:
            # A job that has not begun, or whose environment failed, leaves no folder.
            if self.address is None:
                raise
            return self._status_of(self._client().newest_state(self.run_id))
        if self.address is None or status.state == "done":
            return status
        if status.state == "running":
            job = self._client().newest_state(self.run_id)
            if not job.is_final:
                return status
            return replace(self._status_of(job), stage=status.stage, seconds=status.seconds)
        # A run that was stopped or failed may have been submitted again, and its new job not yet begun.
        with suppress(JobError):
            job = self._client().newest_state(self.run_id)
            if not job.is_final:
                return replace(self._status_of(job), seconds=status.seconds)
        return status

    def wait(
        self, timeout: float | None = None, listener: Callable[[RunStatus], None] | None = None
    ) -> RunStatus:
        """Wait until the run is done, failed or cancelled.

        A driver that ended without a word is noticed by its process or its silence; with an address, so is a
        job that was killed before it had a folder, or whose environment failed.

        Args:
            timeout: seconds after which to give up; None waits for ever.
            listener: called with every status that is read.

        Raises:
            JobError: the timeout passed.
        """
        started = time.monotonic()
        while True:
            status = self.status()
            if listener is not None:
                listener(status)
            if status.state in TERMINAL_STATES:
                return status
            if timeout is not None and time.monotonic() - started > timeout:
                raise JobError(
                    f"the run '{self.run_id}' is still {status.state} ({status.stage}) after {timeout:g} s."
                )
            time.sleep(POLL_SECONDS)

    def logs(self) -> str:
        """All that the job has printed so far; without an address the driver's log in the run's folder.

        Raises:
            StorageError: there is no address, and the run's folder has no log.
        """
        if self.address is None:
            store = resolve_run(self.run_id, self.storage)
            return store.storage.read_bytes(DRIVER_LOG).decode(errors="replace")
        client = self._client()
        return client.logs(client.find(self.run_id))

    def follow(self) -> Iterator[str]:
        """What the job prints, as it comes, until it ends."""
        client = self._client()
        return client.follow_logs(client.find(self.run_id))

    def cancel(self) -> RunStatus:
        """Stop the job; what the run finished stays, and `--resume` goes on with it. One that ended stays so.

        Raises:
            JobError: the cluster does not know the job.
        """
        client = self._client()
        job_id = client.find(self.run_id)
        if client.state(job_id).is_final:
            return self.status()
        # A run that was submitted again while it went on has several.
        while not client.state(job_id).is_final:
            _stop(client, job_id)
            job_id = client.find(self.run_id)
        try:
            store = resolve_run(self.run_id, self.storage)
            status = store.load(codecs.STATUS)
        except StorageError:
            return RunStatus(self.run_id, "cancelled", message="stopped before it had a folder")
        if status.state not in TERMINAL_STATES:
            # A job is killed three seconds after it is asked to stop, maybe too soon for its own word.
            status = replace(status, state="cancelled", updated=time.time(), message="stopped from outside")
            store.save(codecs.STATUS, status)
        return status

    def retrieve(self, to: str | os.PathLike[str]) -> Path:
        """Copy the finished run to a local folder; see `raysearch.retrieve`."""
        return retrieve(self.run_id, self.storage, to)

    def _client(self) -> JobsClient:
        if self.address is None:
            raise ConfigError(
                f"the job of the run '{self.run_id}' is asked for, and no cluster is named; give the address "
                "of its dashboard, such as http://HEAD:8265."
            )
        return JobsClient(self.address, self.token_file, self.ca_file or True)

    def _status_of(self, job: JobState) -> RunStatus:
        states = {"SUCCEEDED": "done", "STOPPED": "cancelled", "FAILED": "failed"}
        state = states.get(job.status, "running")
        # To Ray's message the end of the log belongs, whose last line is the driver's own word.
        words = [line for line in job.message.splitlines() if _ERROR.match(line)]
        message = words[-1] if words else job.message
        return RunStatus(self.run_id, state, stage=f"job {job.status.lower()}", message=message)


def _silent(text: str) -> None:
    """Tell nobody."""


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
    exclude: Sequence[str] = (),
    python: str = "python",
    pip: Sequence[str] = (),
    env_vars: Mapping[str, str] | None = None,
    shared_fs: bool = False,
    token_file: str | None = None,
    ca_file: str | None = None,
    tell: Callable[[str], None] = _silent,
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
        exclude: what of it stays here besides what a .gitignore names, as patterns of one.
        python: the interpreter on the head's PATH that has raysearch.
        pip: requirements to install for the job.
        env_vars: variables for the job; anyone who can see the cluster can read them.
        shared_fs: the local folder `storage` is one that all nodes share.
        token_file: file with the cluster's token.
        ca_file: see `Job`.
        tell: is given how much is uploaded, before it is.

    Raises:
        ConfigError: the storage cannot be reached from the cluster, a path is wrong, the working directory is
            too large or has links that lead out of it, or the settings are more than a command line holds.
        StorageError: there is a run of this name, or none that could be resumed (where the storage is a
            folder of this machine; in an object store the job finds it).
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
    location = _storage_uri(storage, address, shared_fs)
    _check_run(RunStore(location, name), resume, texts)
    folder, spec = _working_dir(task, working_dir)
    command = [python, "-m", "raysearch", "run", spec, "--storage", location, "--run-id", name]
    command += ["--address", "auto"]
    command += [part for text in texts for part in ("--budget", text)]
    command += [part for text in settings_as_text(settings) for part in ("--set", text)]
    if resume:
        command.append("--resume")
    _check_length(command)
    # The cluster remembers the job that is resumed, so the new one needs a name of its own.
    job_id = f"{name}-{new_run_id()}" if resume else name
    client = JobsClient(address, token_file, ca_file or True)
    excludes = (*EXCLUDES, *exclude)
    if folder is not None:
        upload = read_upload(folder, excludes)
        upload.check()
        tell(upload.describe())
    variables = {CLIENT_VARIABLE: as_text(versions_here()), **(env_vars or {})}
    _submit(client, JobRequest(command, name, job_id, folder, excludes, variables, pip))
    return Job(name, location, address, token_file, ca_file)


def _stop(client: JobsClient, job_id: str) -> None:
    """Stop a job, and wait until it has ended."""
    # Ray can lose the process of a job that is stopped before it runs.
    deadline = time.monotonic() + START_SECONDS
    while client.state(job_id).status == "PENDING" and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS / 4)
    client.stop(job_id)
    while not client.state(job_id).is_final:
        time.sleep(POLL_SECONDS / 4)


def _submit(client: JobsClient, request: JobRequest) -> None:
    """Start a job; the name of one that ended without a run's folder is free again, though Ray keeps it."""
    try:
        client.submit(request)
    except JobError as error:
        if "already has a job" not in str(error) or not client.state(request.name).is_final:
            raise
        client.submit(replace(request, job_id=f"{request.name}-{new_run_id()}"))


def _check_run(store: RunStore, resume: bool, budget: Sequence[str]) -> None:
    """Refuse here what the job would refuse; the keys of an object store may be the nodes' alone."""
    if not store.storage.is_local:
        return
    if not resume:
        store.check_vacant()
        return
    recorded = store.open()["config"].get("budget")
    if recorded is not None and list(recorded) != list(budget):
        raise StorageError(
            f"the run '{store.run_id}' was started for the budget {recorded}, and is to go on with "
            f"{list(budget)}. Give the same budget, or start another run (--run-id; `raysearch resolve` "
            "answers other budgets from what a run measured)."
        )


def _check_length(command: Sequence[str]) -> None:
    """A shell takes the job's command as one argument, and Linux up to 128 KiB in one."""
    size = len(shlex.join(command).encode())
    if size > MAX_COMMAND_BYTES:
        raise ConfigError(
            f"the settings take {size:,} bytes of command line, and {MAX_COMMAND_BYTES:,} fit. Put them, and "
            "the files that they name, into the working directory, and start `raysearch run -c FILE` there."
        )


def _storage_uri(storage: str | os.PathLike[str], address: str, shared_fs: bool) -> str:
    """Where the cluster finds the storage.

    Args:
        storage: as the user names it here.
        address: of the cluster's dashboard.
        shared_fs: whether a folder of this machine is the same one on all nodes.
    """
    place = Storage(storage)
    if has_keys(place.uri):
        raise ConfigError(
            f"the storage {place.shown()} has keys in its URI, which would be read in the cluster's jobs, "
            "process lists and logs. Leave them out; credentials belong to the nodes (a service account, "
            "an instance profile, or the environment that Ray was started in)."
        )
    if place.is_local:
        check_reach(
            f"the storage '{storage}'", address, shared_fs, "an object store such as s3://bucket/runs"
        )
    return place.uri


def check_reach(
    what: str, address: str, shared_fs: bool, otherwise: str = "a folder that they share"
) -> None:
    """Refuse a folder of this machine where the cluster is another one.

    Args:
        what: the folder, for messages.
        address: of the cluster's dashboard.
        shared_fs: whether a folder of this machine is the same one on all nodes.
        otherwise: what to use instead.

    Raises:
        ConfigError: the cluster cannot reach it.
    """
    host = urlsplit(address if "://" in address else f"//{address}").hostname
    if host not in LOOPBACK and not shared_fs:
        raise ConfigError(
            f"{what} is a folder of this machine, and the cluster at {address} is another one. Use "
            f"{otherwise}, or say that all nodes share the folder: --shared-fs."
        )


def _working_dir(task: str, working_dir: str | os.PathLike[str] | None) -> tuple[Path | None, str]:
    """The folder to upload, None for none, and the task as it is called from there."""
    path, mark, arguments = task.partition("?")
    location, _, factory = path.rpartition(":")
    if not location.endswith(".py"):
        # A module that the nodes can import.
        return (Path(working_dir).absolute() if working_dir else None), task
    file = Path(location).expanduser().resolve()
    if not file.is_file():
        raise ConfigError(f"the task file '{location}' does not exist (looked at {file}).")
    folder = Path(working_dir or Path.cwd()).resolve()
    if not working_dir and not file.is_relative_to(folder):
        folder = file.parent
    if not file.is_relative_to(folder):
        raise ConfigError(f"the task file {file} is not below the working directory {folder}.")
    return folder, f"{file.relative_to(folder)}:{factory}{mark}{arguments}"
