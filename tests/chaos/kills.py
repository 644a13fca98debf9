"""A driver that is killed at any moment, and goes on until it is done."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import warnings
from pathlib import Path

from tests.chaos.piece import Piece
from tests.chaos.runs import RUN_ID, outcome_of, run_toy

MOST_STARTS = 20


def kill_runs(piece: Piece, finished: Path, seconds: float, count: int, seed: int, scratch: Path) -> None:
    """Start a run, kill its process after a while that is drawn, and go on with it until it is done.

    The process is a fork of this one: what it needs is imported already.

    Args:
        piece: counts the signals that hit, and keeps what was other than it should be.
        finished: the folder of the same run that nothing interrupted.
        seconds: what that took.
        count: signals in all.
        seed: of the draws.
        scratch: a folder.
    """
    expected = outcome_of(finished)
    draw = random.Random(f"kills/{seed}")
    number = 0
    while piece.signals < count and number < 4 * count:
        number += 1
        storage = scratch / f"killed-{number}"
        for _start in range(MOST_STARTS):
            was_hit, code = run_and_kill(storage, draw.uniform(0, 1.1 * seconds), draw)
            piece.signals += was_hit
            if not was_hit:
                break
        if code != 0:
            piece.wrong.append(f"run {number} of seed {seed} ended with {code}")
        elif outcome_of(storage / RUN_ID) != expected:
            piece.wrong.append(f"run {number} of seed {seed} has another result")
        elif leftovers := [path.name for path in (storage / RUN_ID).rglob(".*.tmp")]:
            piece.wrong.append(f"run {number} of seed {seed} left {leftovers}")
        else:
            piece.runs_after_kills += 1
        shutil.rmtree(storage, ignore_errors=True)


def run_and_kill(storage: Path, delay: float, draw: random.Random) -> tuple[bool, int]:
    """Start or go on with a run in a process of its own, and kill it after a while.

    Args:
        storage: where the run is.
        delay: seconds until the signal.
        draw: chooses it.

    Returns:
        Whether the signal hit, and with what the process ended.
    """
    pid = os.fork()
    if pid == 0:
        os._exit(_child(storage))
    sent = draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
    ends = time.monotonic() + delay
    while time.monotonic() < ends:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return False, os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, sent)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code != 0, code


def _child(storage: Path) -> int:
    has_folder = (storage / RUN_ID / "run.json").exists()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run_toy(storage, resume=has_folder)
        return 0
    except KeyboardInterrupt:
        return 130
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return 1
