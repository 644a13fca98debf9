import os
from pathlib import Path

import pytest
import torch

import raysearch
from raysearch.artifacts import Storage
from tests.support import toy_task
from tests.support.command_line import QUICK, TOY, document, run_command
from tests.support.patience import HANG_SECONDS, wait_until

ENDLESS = (
    "sensitivity.estimator=hutchinson",
    "sensitivity.relative_error=1e-9",
    "sensitivity.max_draws=20000",
)
SETS = [part for text in [*QUICK, "training.epochs=1"] for part in ("--set", text)]


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_in_a_bucket_is_submitted_watched_and_retrieved(ray_head, object_store, tmp_path):
    storage = object_store.uri("runs")
    head = ["--address", ray_head.address, "--token-file", ray_head.token_file, "--storage", storage]
    process = run_command(
        "submit", f"{TOY}:make_task", "--budget", "avg_bits<=3.5", "--run-id", "job", *head, *SETS,
        "--working-dir", Path(toy_task.__file__).parent,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "job"
    assert process.stderr.startswith("uploads ")

    early = document(run_command("status", "job", *head, "--json"))
    assert early["state"] in ("running", "done")
    waited = run_command("wait", "job", *head, "--timeout", HANG_SECONDS, "--json")
    logs = run_command("logs", "job", *head)
    assert waited.returncode == 0, f"{waited.stdout}\n{waited.stderr}\n{logs.stdout}"
    assert document(waited)["state"] == "done"
    assert "search" in logs.stdout

    assert not [name for name in Storage(storage).list() if "/units/" in name]
    folder = raysearch.retrieve("job", storage, tmp_path / "here")
    model = raysearch.load_model(folder / "model")
    images, labels = toy_task.data(64, 2).tensors
    with torch.no_grad():
        assert (model(images).argmax(1) == labels).float().mean() > 0.9


@pytest.mark.ray
@pytest.mark.slow
def test_a_cancelled_search_says_so_and_an_unknown_one_is_named(ray_head, tmp_path):
    spec = f"{os.path.relpath(toy_task.__file__)}:make_task"
    config = raysearch.load_config(assignments=[*QUICK, *ENDLESS])
    options = {
        "address": ray_head.address,
        "config": config,
        "working_dir": Path(toy_task.__file__).parent,
        "token_file": str(ray_head.token_file),
    }
    job = raysearch.submit(spec, "avg_bits<=3.5", tmp_path, **options)
    wait_until(lambda: job.status().stage.startswith("sensitivity"))
    assert job.cancel().state == "cancelled"
    assert job.wait().state == "cancelled"
    again = raysearch.submit(spec, "avg_bits<=3.5", tmp_path, run_id=job.run_id, resume=True, **options)
    assert again.status().state == "running", "the new job counts, not the state that the old one left"
    # A job that is stopped while its process starts can leave that process behind.
    wait_until(lambda: again.status().stage.startswith("sensitivity"))
    assert again.cancel().state == "cancelled"
    unknown = raysearch.Job("nothing", str(tmp_path), ray_head.address, str(ray_head.token_file))
    with pytest.raises(raysearch.RunError, match="no job of the run nothing"):
        unknown.logs()
