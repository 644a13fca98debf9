"""QAT on Ray Train workers."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import ray.data
from torch import nn
from torch.nn import functional as F

from raysearch.artifacts import Storage
from raysearch.cluster.by_value import register_by_value
from raysearch.training import fine_tune, load_checkpoint
from tests.support import training_recipes
from tests.support.patience import HANG_SECONDS, wait_until
from tests.support.training_recipes import Deadly, Plain, RankSpy, accuracy, blobs, make_recipe

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("ray_cluster"),
    # Ray Train sets deprecated attributes of its own data context.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
# As a task file is: code that workers have no name for.
register_by_value(training_recipes)


def run(recipe, folder=None, tell=lambda status: None):
    saved = {}
    storage = None if folder is None else Storage(folder)
    result = fine_tune(recipe, saved.__setitem__, on_ray=folder is not None, storage=storage, tell=tell)
    return result, saved


def kill_a_driver(folder):
    """Train in a process that its worker kills; the worker's process, which Ray ends."""
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "tests.support.killed_driver", address, str(folder)]
    driver = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert driver.returncode == -signal.SIGKILL, driver.stderr
    return Path("/proc", (folder / "driver-killed").read_text())


class Normed(Plain):
    """With BatchNorm, and nothing random."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(12)


def named_loss(outputs, batch):
    return F.cross_entropy(outputs, batch["y"])


def named_accuracy(outputs, batch):
    return accuracy(outputs, (batch["x"], batch["y"]))


def parquet(folder, num_rows):
    """Rows in files of odd lengths, and what Ray Data reads of them."""
    folder.mkdir()
    x, y = blobs(num_rows, 1)
    for start in range(0, num_rows, 37):
        rows = slice(start, start + 37)
        columns = {"x": pa.array(x[rows].tolist(), pa.list_(pa.float32())), "y": y[rows].numpy()}
        table = pa.table(columns)
        pq.write_table(table, folder / f"{start:04d}.parquet", row_group_size=16)
    return ray.data.read_parquet(str(folder))


def test_two_workers_stream_parquet_files_agree_and_step_as_one(tmp_path):
    data = parquet(tmp_path / "rows", 190)
    validation = [dict(zip("xy", blobs(64, 2), strict=True)), dict(zip("xy", blobs(48, 3), strict=True))]
    settings = {"kind": Normed, "epochs": 2, "global_batch_size": 32, "sync_batch_norm": True}
    fields = {"train": data, "validation": validation, "loss": named_loss}
    fields["metrics"] = {"accuracy": named_accuracy}
    spies = {1: RankSpy(tmp_path / "alone"), 2: RankSpy(tmp_path / "together")}
    alone, _ = run(make_recipe(**settings, **fields, forward=spies[1]))
    recipe = make_recipe(num_workers=2, **settings, **fields, forward=spies[2])
    together, saved = run(recipe, tmp_path / "run")
    states = [spies[2].states(rank) for rank in range(2)]
    assert states[0] == states[1]
    assert len(set(states[0])) == 3
    assert [entry.epoch for entry in together.history] == [-1, 0, 1]
    assert together.history[-1].metrics["loss"] < together.history[0].metrics["loss"]
    # The first is of the calibrated model, whose validation one process sums to the same bits.
    assert together.history[0] == alone.history[0]
    assert together.history[1].metrics == pytest.approx(alone.history[1].metrics, rel=1e-3)
    load_checkpoint(recipe.build(), saved[together.checkpoint])
    # Every row once an epoch, in steps of the same rows whatever the number of workers.
    steps = {1: [], 2: []}
    for world, rows_of_steps in steps.items():
        # Ranks of a group try one batch of two samples first.
        tried = int(world > 1)
        for batches in zip(*(spies[world].batches(rank)[tried:] for rank in range(world)), strict=True):
            rows_of_steps.append(sorted(itertools.chain.from_iterable(batches)))
    assert steps[1] == steps[2]
    assert [len(rows) for rows in steps[1]] == [32, 32, 32, 32, 32, 30] * 2
    rows = sorted(blobs(190, 1)[0].tolist())
    assert sorted(itertools.chain.from_iterable(steps[1][:6])) == rows
    assert sorted(itertools.chain.from_iterable(steps[1][6:])) == rows


# The last of the suite in its Ray: what Ray keeps of a killed driver is in nobody's way.
@pytest.mark.process
def test_one_worker_gives_the_bits_of_this_process_though_its_driver_and_itself_are_killed(tmp_path):
    settings = {"epochs": 2, "checkpoint_steps": 4}
    expected, saved = run(make_recipe(**settings))
    worker = kill_a_driver(tmp_path)
    assert (tmp_path / "training" / "step-00000004.safetensors").exists()
    # Two workers would write the same checkpoints.
    wait_until(lambda: not worker.exists())
    told = []
    result, saved_on_ray = run(make_recipe(**settings, forward=Deadly(str(tmp_path))), tmp_path, told.append)
    assert (tmp_path / "worker-killed").exists()
    assert result == expected
    assert saved_on_ray == saved
    assert told[-1].step == told[-1].steps == 12
    assert told[-1].validation == result.history[-1].metrics
