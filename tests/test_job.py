"""A run's jobs, of which an answer needs the right one; the cluster here is a list."""

import contextlib
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

import raysearch
from raysearch.artifacts import RunStore
from raysearch.cluster.jobs import JobsClient
from raysearch.errors import JobError, StorageError
from raysearch.job import Job
from tests.support.command_line import TOY

REFUSED = "Job entrypoint command failed …\nq  task\nStorageError: the run 'q' is being worked on. Wait.\n"


@pytest.fixture
def jobs(monkeypatch):
    """Name → job, in the order of their starts."""
    started = {}

    def job(name, status="RUNNING", message=""):
        started[name] = SimpleNamespace(
            submission_id=name, metadata={"raysearch_run_id": "q"}, start_time=len(started),
            status=JobStatus(status), message=message, driver_exit_code=None, error_type=None,
        )  # fmt: skip

    def submit_job(submission_id, **options):
        if submission_id in started:
            raise RuntimeError(f"{submission_id} already exists")
        job(submission_id)
        return submission_id

    def stop_job(name):
        started[name].status = JobStatus.STOPPED

    cluster = SimpleNamespace(
        list_jobs=lambda: list(started.values()), get_job_info=started.__getitem__, stop_job=stop_job,
        submit_job=submit_job,
    )  # fmt: skip
    monkeypatch.setattr(JobsClient, "_connection", lambda self: contextlib.nullcontext(cluster))
    started["add"] = job
    return started


def test_the_job_that_goes_on_counts_whatever_was_refused_after_it(jobs, tmp_path):
    add = jobs.pop("add")
    add("q")
    add("q-2", "FAILED", REFUSED)
    run = Job("q", str(tmp_path), "head")
    assert run.status().stage == "job running"
    add("q-3")
    assert run.cancel().state == "cancelled"
    assert {name: job.status.value for name, job in jobs.items()} == {
        "q": "STOPPED", "q-2": "FAILED", "q-3": "STOPPED",
    }  # fmt: skip


def test_a_run_that_failed_says_its_own_word_and_is_not_cancelled(jobs, tmp_path):
    jobs.pop("add")("q", "FAILED", REFUSED)
    ended = Job("q", str(tmp_path), "head").cancel()
    assert (ended.state, ended.message) == ("failed", "StorageError: the run 'q' is being worked on. Wait.")


def test_a_name_is_free_again_when_its_job_ended_without_a_folder(jobs, tmp_path):
    add = jobs.pop("add")
    add("q")
    options = {"address": "127.0.0.1", "run_id": "q"}
    with pytest.raises(JobError, match="already has a job q"):
        raysearch.submit(f"{TOY}:make_task", "avg_bits<=4", tmp_path, **options)
    jobs["q"].status = JobStatus.FAILED
    raysearch.submit(f"{TOY}:make_task", "avg_bits<=4", tmp_path, **options)
    assert len(jobs) == 2

    RunStore(tmp_path, "q").create({"task": "t", "budget": ["avg_bits<=4"]}, {}, {})
    with pytest.raises(StorageError, match=r"was started for the budget \['avg_bits<=4'\].*\['size<=1MB'\]"):
        raysearch.submit(f"{TOY}:make_task", "size<=1MB", tmp_path, resume=True, **options)
