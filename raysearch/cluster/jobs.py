"""Runs as Ray jobs: sent to a cluster, watched and stopped over HTTP.

Needs neither a running Ray in this process nor the cluster's Ray or Python version.
"""

from __future__ import annotations

import logging
import os
import shlex
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from raysearch.cluster.auth import auth_headers, find_token
from raysearch.errors import ConfigError, JobError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_log = logging.getLogger(__name__)

DEFAULT_PORT = 8265
EXCLUDES = (".git", ".venv", "venv", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", "/runs")
"""What stays at home when a working directory is uploaded, as patterns of a .gitignore."""

_PREFLIGHT_SECONDS = 10.0
_AGENT_SECONDS = 90.0
_OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


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


def submit_job(
    address: str,
    entrypoint: Sequence[str],
    run_id: str,
    *,
    job_id: str | None = None,
    working_dir: str | Path | None = None,
    env_vars: Mapping[str, str] | None = None,
    pip: Sequence[str] = (),
    token_file: str | Path | None = None,
    verify: bool | str = True,
) -> str:
    """Start a command on the head of a cluster.

    Args:
        address: of the cluster's dashboard: "http://HOST:8265", "https://HOST" or "HOST[:PORT]".
        entrypoint: the command and its arguments; quoted for the shell that runs it.
        run_id: the run that the job works on; `find_job` finds the job by it.
        job_id: names the job, by default by the run; two jobs of a cluster cannot have the same.
        working_dir: a folder to upload and run in, without `EXCLUDES` and what its .gitignore names.
        env_vars: for the job and its workers. Anyone who can see the cluster can read them.
        pip: requirements to install for the job.
        token_file: a file that holds the cluster's token; see `find_token` for the other places.
        verify: whether to check a certificate of https, or a file with the authority to check it by.

    Returns:
        The job's id.

    Raises:
        ConfigError: an address or token file that cannot be read.
        JobError: the cluster cannot be reached, refuses the token, or refuses the job.
    """
    runtime_env: dict[str, Any] = {}
    if working_dir is not None:
        runtime_env |= {"working_dir": str(working_dir), "excludes": list(EXCLUDES)}
    if env_vars:
        runtime_env["env_vars"] = dict(env_vars)
    if pip:
        runtime_env["pip"] = list(pip)
    request = {
        "entrypoint": shlex.join(entrypoint),
        "submission_id": job_id or run_id,
        "metadata": {"raysearch_run_id": run_id},
        "runtime_env": runtime_env,
    }
    with _client(address, token_file, verify) as client:
        try:
            return _submit_when_ready(client, request)
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise
            raise JobError(
                f"the cluster at {address} already has a job {job_id or run_id}; watch that one, or give the "
                "run another id"
            ) from error


def _submit_when_ready(client: JobSubmissionClient, request: dict[str, Any]) -> str:
    # The dashboard of a young cluster answers some seconds before the agent that starts jobs does.
    deadline = time.monotonic() + _AGENT_SECONDS
    while True:
        try:
            submitted: str = client.submit_job(**request)
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1.0)
        else:
            return submitted


def find_job(
    address: str, run_id: str, *, token_file: str | Path | None = None, verify: bool | str = True
) -> str:
    """The id of the newest job of a run; a resumed run has several.

    Raises:
        JobError: the cluster cannot be reached, refuses the token, or has no job of this run.
    """
    with _client(address, token_file, verify) as client:
        jobs = [
            (job.start_time or 0, job.submission_id)
            for job in client.list_jobs()
            if (job.metadata or {}).get("raysearch_run_id") == run_id and job.submission_id
        ]
    if not jobs:
        raise JobError(f"the cluster at {address} has no job of the run {run_id}; check the run id")
    return max(jobs)[1]


def job_status(
    address: str, job_id: str, *, token_file: str | Path | None = None, verify: bool | str = True
) -> JobState:
    """Where a job stands.

    Args:
        address: see `submit_job`.
        job_id: what `submit_job` returned.
        token_file: see `submit_job`.
        verify: see `submit_job`.

    Raises:
        JobError: the cluster cannot be reached, refuses the token, or does not know the job.
    """
    with _client(address, token_file, verify) as client:
        return _state(client, job_id)


def job_logs(
    address: str, job_id: str, *, token_file: str | Path | None = None, verify: bool | str = True
) -> str:
    """All that a job has printed so far; arguments and errors as in `job_status`."""
    with _client(address, token_file, verify) as client:
        return client.get_job_logs(job_id)


def follow_job_logs(
    address: str,
    job_id: str,
    *,
    token_file: str | Path | None = None,
    verify: bool | str = True,
    poll_seconds: float = 2.0,
) -> Iterator[str]:
    """What a job prints, in pieces as they come, until it ends.

    Asks again and again rather than hold a web socket open, so that it works through any proxy and
    inside a running event loop. Arguments and errors are those of `job_status`.

    Args:
        address: see `submit_job`.
        job_id: what `submit_job` returned.
        token_file: see `submit_job`.
        verify: see `submit_job`.
        poll_seconds: pause between two looks.

    Yields:
        The text that is new since the piece before.
    """
    seen = 0
    while True:
        with _client(address, token_file, verify) as client:
            # The state first: what a job prints before it ends is then in the logs asked for after.
            is_final = _state(client, job_id).is_final
            text = client.get_job_logs(job_id) or ""
        if len(text) > seen:
            yield text[seen:]
            seen = len(text)
        if is_final:
            return
        time.sleep(poll_seconds)


def stop_job(
    address: str, job_id: str, *, token_file: str | Path | None = None, verify: bool | str = True
) -> bool:
    """Ask a job to stop: SIGTERM to its processes, SIGKILL three seconds later.

    Arguments and errors as in `job_status`.

    Returns:
        Whether it was running.
    """
    with _client(address, token_file, verify) as client:
        return client.stop_job(job_id)


def _state(client: JobSubmissionClient, job_id: str) -> JobState:
    info = client.get_job_info(job_id)
    return JobState(
        status=str(info.status.value),
        is_final=info.status.is_terminal(),
        message=info.message or "",
        exit_code=info.driver_exit_code,
        error_type=info.error_type,
    )


@contextmanager
def _client(address: str, token_file: str | Path | None, verify: bool | str) -> Iterator[JobSubmissionClient]:
    """A client of exactly this cluster; whatever fails while it is used becomes a `JobError`."""
    # A second's import: `raysearch status` without an address does not pay for it.
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    url = _url(address)
    token = find_token(token_file)
    parts = urlsplit(url)
    if token and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        _log.warning("the token goes to %s unencrypted; use https or a port-forward", parts.hostname)
    try:
        _preflight(url)
        with _no_overrides():
            client = JobSubmissionClient(url, headers=auth_headers(token), verify=verify)
        yield client
    except AuthenticationError as error:
        is_missing = "Authentication required" in str(error)
        raise JobError(
            f"{url} {'wants a token (HTTP 401)' if is_missing else 'refuses this token (HTTP 403)'}. Put the "
            "cluster's token into RAYSEARCH_TOKEN or ~/.ray/auth_token, or name its file by token_file"
        ) from error
    except OSError as error:
        raise JobError(
            f"no Ray dashboard answers at {url}: {error}. Check the address (the dashboard's port is 8265 by "
            "default) and that the cluster is up; a cluster in Kubernetes needs a port-forward first"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise JobError(f"the cluster at {url} could not do it: {error}") from error


def _url(address: str) -> str:
    scheme, separator, rest = address.rpartition("://")
    parts = urlsplit(f"//{rest}" if rest and not rest.startswith("/") else "")
    if (separator and scheme not in ("http", "https")) or not parts.hostname or address in ("auto", "local"):
        raise ConfigError(
            f"the address {address!r} is none of a cluster's dashboard; allowed are http://HOST:PORT, "
            "https://HOST and HOST[:PORT] (by default port 8265)"
        )
    if separator:
        return address.rstrip("/")
    return f"http://{rest if parts.port else f'{rest}:{DEFAULT_PORT}'}".rstrip("/")


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
