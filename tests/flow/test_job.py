import os
from pathlib import Path

import pytest
import torch

import raysearch
from raysearch.artifacts import Storage
from raysearch.errors import StorageError
from tests.support import toy_task
from tests.support.command_line import QUICK, TOY, document, run_command
from tests.support.patience import wait_until
from tests.support.ray_head import second_node

ENDLESS = (
    "sensitivity.estimator=hutchinson",
    "sensitivity.relative_error=1e-9",
    "sensitivity.max_draws=20000",
)
SETTINGS = [*QUICK, "training.epochs=1", "cluster.device=cpu"]
SETS = [part for text in [*SETTINGS, "cluster.workers=2"] for part in ("--set", text)]


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_in_a_bucket_is_submitted_watched_and_retrieved_though_a_node_dies(
    ray_head, object_store, tmp_path
):
    storage = object_store.uri("runs")
    head = ["--address", ray_head.address, "--token-file", ray_head.token_file, "--storage", storage]
    nothing = run_command("submit", "t:t", *head, "--env", "TOY_GATE")
    assert (nothing.returncode, "--env 'TOY_GATE' sets no variable" in nothing.stderr) == (2, True)
    gate = tmp_path / "gate"
    gate.mkdir()
    with second_node(ray_head) as lose_node:
        process = run_command(
            "submit", f"{TOY}:make_gated_task", "--budget", "avg_bits<=3.5", "--run-id", "job", *head, *SETS,
            "--working-dir", Path(toy_task.__file__).parent, "--env", f"TOY_GATE={gate}",
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        assert process.stdout.strip() == "job"
        assert process.stderr.startswith("uploads ")
        early = document(run_command("status", "job", *head, "--json"))
        assert early["state"] in ("running", "done")
        # A worker of each node is at a unit.
        wait_until(lambda: len(list(gate.iterdir())) == 2)
        lose_node()
        (gate / "open").touch()
        watched = run_command("status", "job", *head, "--watch", "--json")
    logs = run_command("logs", "job", *head).stdout
    assert watched.returncode == 0, f"{watched.stdout}\n{watched.stderr}\n{logs}"
    assert document(watched)["state"] == "done"
    driver_log = Storage(storage).read_bytes("job/driver.log").decode()
    assert "2 nodes asked" in driver_log
    assert "is replaced" in driver_log, "a worker was lost with its node"

    assert not [name for name in Storage(storage).list() if "/units/" in name]
    folder = raysearch.retrieve("job", storage, tmp_path / "here")
    alone = raysearch.run(
        toy_task.make_task(), "avg_bits<=3.5", tmp_path, config=raysearch.load_config(assignments=SETTINGS),
        run_id="alone", workers=0,
    )  # fmt: skip
    for name in (
        "ranges.safetensors",
        "rounding.safetensors",
        "responses.arrow",
        "trials.parquet",
        "best.json",
    ):
        assert (folder / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    assert alone.quantized_metrics["accuracy"] > 0.9
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
    with pytest.raises(StorageError, match=f"the run '{job.run_id}' exists already .*--resume"):
        raysearch.submit(spec, "avg_bits<=3.5", tmp_path, run_id=job.run_id, **options)
    with pytest.raises(StorageError, match="there is no run 'none'"):
        raysearch.submit(spec, "avg_bits<=3.5", tmp_path, run_id="none", resume=True, **options)
    again = raysearch.submit(spec, "avg_bits<=3.5", tmp_path, run_id=job.run_id, resume=True, **options)
    assert again.status().state == "running", "the new job counts, not the state that the old one left"
    # A job that is stopped while its process starts can leave that process behind.
    wait_until(lambda: again.status().stage.startswith("sensitivity"))
    assert again.cancel().state == "cancelled"
    unknown = raysearch.Job("nothing", str(tmp_path), ray_head.address, str(ray_head.token_file))
    with pytest.raises(raysearch.RunError, match="no job of the run nothing"):
        unknown.logs()
