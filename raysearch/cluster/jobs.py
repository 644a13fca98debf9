"""Runs as Ray jobs: sent to a cluster, watched and stopped over HTTP.

Needs neither a running Ray in this process nor the cluster's Ray or Python version.
"""

from __future__ import annotations

import logging
import os
import shlex
import socket
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from raysearch.cluster.auth import auth_headers, find_token
from raysearch.cluster.upload import EXCLUDES
from raysearch.errors import ConfigError, JobError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_log = logging.getLogger(__name__)

DEFAULT_PORT = 8265
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names of this machine."""

_RUN_KEY = "raysearch_run_id"
_PREFLIGHT_SECONDS = 10.0
_AGENT_SECONDS = 90.0
_OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_NO_TOKEN: Mapping[str, None] = {"Authorization": None}
"""To `requests` a header that is not sent, and to Ray one that the caller has set."""


@dataclass(frozen=True)
class JobState:
    """Where a job stands: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.

    `exit_code` is the entrypoint's own; None while it runs, after a stop, or when it never started.
    """

    status: str
    is_final: bool
    message: str
    exit_code: int | None
    error_type: str | None


@dataclass(frozen=True)
class JobRequest:
    """A command to start on the head of a cluster.

    Attributes:
        entrypoint: the command and its arguments; quoted for the shell that runs it.
        run_id: the run that the job works on; `JobsClient.find` finds the job by it.
        job_id: names the job; "" is the run's name. Two jobs of a cluster cannot have the same.
        working_dir: a folder to upload and run in, without what its .gitignore names.
        excludes: what else stays at home, as patterns of a .gitignore.
        env_vars: for the job and its workers. Anyone who can see the cluster can read them.
        pip: requirements to install for the job.
    """

    entrypoint: Sequence[str]
    run_id: str
    job_id: str = ""
    working_dir: str | Path | None = None
    excludes: Sequence[str] = EXCLUDES
    env_vars: Mapping[str, str] = field(default_factory=dict)
    pip: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The job's id."""
        return self.job_id or self.run_id

    def arguments(self) -> dict[str, Any]:
        """The same in the words of Ray's own client."""
        runtime_env: dict[str, Any] = {}
        if self.working_dir is not None:
            runtime_env |= {"working_dir": str(self.working_dir), "excludes": list(self.excludes)}
        if self.env_vars:
            runtime_env["env_vars"] = dict(self.env_vars)
        if self.pip:
            runtime_env["pip"] = list(self.pip)
        return {
            "entrypoint": shlex.join(self.entrypoint),
            "submission_id": self.name,
            "metadata": {_RUN_KEY: self.run_id},
            "runtime_env": runtime_env,
        }


@dataclass(frozen=True)
class JobsClient:
    """The jobs of one cluster, over HTTP; every method opens a connection of its own.

    Attributes:
        address: of the cluster's dashboard: "http://HOST:8265", "https://HOST" or "HOST[:PORT]".
        token_file: a file that holds the cluster's token; see `find_token` for the other places.
        verify: whether to check a certificate of https, or a file with the authority to check it by.

    Raises:
        ConfigError: of any method: the address or the token file cannot be read.
        JobError: of any method: the cluster cannot be reached, refuses the token, or does not know the job.
    """

    address: str
    token_file: str | Path | None = None
    verify: bool | str = True

    def __post_init__(self) -> None:
        # `requests` would tell of it in a traceback, after the connection.
        if not isinstance(self.verify, str):
            return
        reason = "" if Path(self.verify).is_file() else "is no file"
        try:
            if not reason:
                ssl.create_default_context(cafile=self.verify)
        except OSError as error:
            reason = f"holds no certificate that can be read ({error})"
        if reason:
            raise ConfigError(
                f"--ca-file names {self.verify}, which {reason}; give the certificate (PEM) of the "
                "authority that signed the cluster's."
            )

    def submit(self, request: JobRequest) -> str:
        """Start a job.

        Returns:
            The job's id.

        Raises:
            JobError: the cluster refuses the job, or has one of this name.
        """
        with self._connection() as connection:
            try:
                return _submit_when_ready(connection, request.arguments())
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise
                raise JobError(
                    f"the cluster at {self.address} already has a job {request.name}; watch that one, or "
                    "give the run another id"
                ) from error

    def find(self, run_id: str) -> str:
        """The id of the newest job of a run, of those that go on if any does; a resumed run has several.

        Raises:
            JobError: the cluster has no job of this run.
        """
        with self._connection() as connection:
            jobs = [job for job in connection.list_jobs() if (job.metadata or {}).get(_RUN_KEY) == run_id]
        order = [
            (not job.status.is_terminal(), job.start_time or 0, job.submission_id)
            for job in jobs
            if job.submission_id
        ]
        if not order:
            raise JobError(f"the cluster at {self.address} has no job of the run {run_id}; check the run id")
        return max(order)[2]

    def state(self, job_id: str) -> JobState:
        """Where a job stands."""
        with self._connection() as connection:
            return _state(connection, job_id)

    def newest_state(self, run_id: str) -> JobState:
        """Where the newest job of a run stands."""
        return self.state(self.find(run_id))

    def logs(self, job_id: str) -> str:
        """All that a job has printed so far."""
        with self._connection() as connection:
            return connection.get_job_logs(job_id)

    def follow_logs(self, job_id: str, poll_seconds: float = 2.0) -> Iterator[str]:
        """What a job prints, in pieces as they come, until it ends.

        Asks again and again rather than hold a web socket open, so that it works through any proxy and
        inside a running event loop.

        Args:
            job_id: what `submit` or `find` returned.
            poll_seconds: pause between two looks.

        Yields:
            The text that is new since the piece before.
        """
        num_printed = 0
        while True:
            with self._connection() as connection:
                # The state first: what a job prints before it ends is then in the logs asked for after.
                is_final = _state(connection, job_id).is_final
                text = connection.get_job_logs(job_id) or ""
            if len(text) > num_printed:
                yield text[num_printed:]
                num_printed = len(text)
            if is_final:
                return
            time.sleep(poll_seconds)

    def stop(self, job_id: str) -> bool:
        """Ask a job to stop: SIGTERM to its processes, SIGKILL three seconds later.

        Returns:
            Whether it was running.
        """
        with self._connection() as connection:
            return connection.stop_job(job_id)

    @contextmanager
    def _connection(self) -> Iterator[JobSubmissionClient]:
        """Ray's client of exactly this cluster; whatever fails while it is used becomes a `JobError`."""
        # A second's import: `raysearch status` without an address does not pay for it.
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        url = _url(self.address)
        token = find_token(self.token_file)
        # Left without an answer Ray sends the token that it remembers, perhaps of another cluster.
        headers = auth_headers(token) or _NO_TOKEN
        parts = urlsplit(url)
        if token and parts.scheme == "http" and parts.hostname not in LOOPBACK:
            _log.warning("the token goes to %s unencrypted; use https or a port-forward", parts.hostname)
        try:
            _preflight(url)
            with _no_overrides():
                connection = JobSubmissionClient(url, headers=dict(headers), verify=self.verify)
            yield connection
        except AuthenticationError as error:
            is_missing = "Authentication required" in str(error)
            reason = "wants a token (HTTP 401)" if is_missing else "refuses this token (HTTP 403)"
            raise JobError(
                f"{url} {reason}. Put the cluster's token into RAYSEARCH_TOKEN or ~/.ray/auth_token, or name "
                "its file by token_file"
            ) from error
        except OSError as error:
            # Ray says only that it failed.
            if "CERTIFICATE_VERIFY_FAILED" in f"{error} {error.__context__}":
                other = f"; {self.verify} does not vouch for it" if isinstance(self.verify, str) else ""
                raise JobError(
                    f"the certificate of {url} is not trusted{other}. Name the authority that signed it by "
                    "--ca-file FILE (PEM); to go on without a check is not offered"
                ) from error
            raise JobError(_no_dashboard(url, "no Ray dashboard answers", error)) from error
        except (RuntimeError, ValueError) as error:
            if "Version check returned" in str(error):
                raise JobError(_no_dashboard(url, "what answers is no Ray dashboard", error)) from error
            raise JobError(f"the cluster at {url} could not do it: {error}") from error


def _no_dashboard(url: str, what: str, error: Exception) -> str:
    reason = str(error).rstrip(".")
    # The page of another web server, where JSON was asked for.
    if isinstance(error, ValueError):
        what, reason = "what answers is no Ray dashboard", "it gives no JSON"
    return (
        f"{what} at {url}: {reason}. Check the address (http or https; the dashboard's port is 8265 by "
        "default) and that the cluster is up; a cluster in Kubernetes needs a port-forward first"
    )


def _submit_when_ready(connection: JobSubmissionClient, arguments: Mapping[str, Any]) -> str:
    # The dashboard of a young cluster answers some seconds before the agent that starts jobs does.
    deadline = time.monotonic() + _AGENT_SECONDS
    while True:
        try:
            job_id: str = connection.submit_job(**arguments)
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1.0)
        else:
            return job_id


def _state(connection: JobSubmissionClient, job_id: str) -> JobState:
    info = connection.get_job_info(job_id)
    return JobState(
        status=str(info.status.value),
        is_final=info.status.is_terminal(),
        message=info.message or "",
        exit_code=info.driver_exit_code,
        error_type=info.error_type,
    )


def _url(address: str) -> str:
    scheme, separator, rest = address.rpartition("://")
    parts = urlsplit(f"//{rest}" if rest and not rest.startswith("/") else "")
    try:
        port, is_port = parts.port, True
    except ValueError:
        port, is_port = None, False
    is_other = (separator and scheme not in ("http", "https")) or address in ("auto", "local")
    if is_other or not is_port or not parts.hostname:
        raise ConfigError(
            f"the address {address!r} is none of a cluster's dashboard; allowed are http://HOST:PORT, "
            "https://HOST and HOST[:PORT] (by default port 8265)"
        )
    if separator:
        return address.rstrip("/")
    return f"http://{rest if port else f'{rest}:{DEFAULT_PORT}'}".rstrip("/")


def _preflight(url: str) -> None:
    """Fail in seconds where HTTP would wait for minutes; behind a proxy only HTTP can tell."""
    parts = urlsplit(url)
    if parts.scheme not in getproxies():
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=_PREFLIGHT_SECONDS).close()


@contextmanager
def _no_overrides() -> Iterator[None]:
    """Hide the variables that Ray prefers to an explicit address."""
    hidden = {name: os.environ.pop(name) for name in _OVERRIDES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
