"""Run the command line as a user does: another process, its own stdout."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOY = "tests/flow/toy_task.py"
QUICK = [
    "calibration.num_samples=64",
    "calibration.shard_size=16",
    "sensitivity.relative_error=1000",
    "sensitivity.draw_chunk=2",
    "search.num_trials=16",
    "search.batch_size=4",
    "search.shard_size=16",
    "training.epochs=2",
]


def raysearch(*arguments, **environment):
    """The finished process of `raysearch …`, run in the repository's root."""
    return subprocess.run(
        [sys.executable, "-m", "raysearch", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def run_arguments(storage, run_id, *more, factory="make_task", settings=QUICK):
    sets = [part for text in settings for part in ("--set", text)]
    return [
        "run", f"{TOY}:{factory}", "--budget", "avg_bits<=3.5", "--storage", storage, "--run-id", run_id,
        "--workers", "0", *sets, *more,
    ]  # fmt: skip


def document(process):
    """The one JSON document on stdout."""
    assert process.stdout.strip(), process.stderr
    return json.loads(process.stdout)
