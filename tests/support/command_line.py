"""Run the command line as a user does: its entry point in this process, or a process of its own."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

from raysearch.cli import main
from tests.support.patience import HANG_SECONDS

ROOT = Path(__file__).parents[2]
TOY = "tests/support/toy_task.py"
QUICK = [
    "calibration.num_samples=64",
    "calibration.shard_size=16",
    "sensitivity.relative_error=1000",
    "sensitivity.draw_chunk=2",
    "search.num_trials=16",
    "search.batch_size=4",
    "search.shard_size=16",
    "rounding.refine_steps=4",
    "training.epochs=2",
]


def run_command(*arguments):
    """`raysearch …` by its entry point; the two streams are caught at their file descriptors.

    What a process of its own adds is five seconds of imports; `run_process` is for what needs one.
    """
    command = ["raysearch", *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        with _stream(1, stdout), _stream(2, stderr), mock.patch.object(sys, "argv", command):
            try:
                main()
                code = 0
            except SystemExit as ended:
                code = ended.code
        texts = []
        for stream in (stdout, stderr):
            stream.seek(0)
            texts.append(stream.read())
    return subprocess.CompletedProcess(command, code, *texts)


@contextlib.contextmanager
def _stream(descriptor, file):
    """The file is what the descriptor and Python's stream of that name write to."""
    name = {1: "stdout", 2: "stderr"}[descriptor]
    saved = os.dup(descriptor)
    os.dup2(file.fileno(), descriptor)
    try:
        with os.fdopen(os.dup(descriptor), "w") as stream, mock.patch.object(sys, name, stream):
            yield
    finally:
        os.dup2(saved, descriptor)
        os.close(saved)


def run_process(*arguments, **environment):
    """The finished process of `raysearch …`, run in the repository's root."""
    return subprocess.run(
        [sys.executable, "-m", "raysearch", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )


def run_arguments(storage, run_id, *more, factory="make_task", settings=QUICK):
    sets = [part for text in settings for part in ("--set", text)]
    return [
        "run", f"{TOY}:{factory}", "--budget", "avg_bits<=3.5", "--storage", storage, "--run-id", run_id,
        "--workers", "0", *sets, *more,
    ]  # fmt: skip


def document(done):
    """The one JSON document on stdout."""
    assert done.stdout.strip(), done.stderr
    return json.loads(done.stdout)
