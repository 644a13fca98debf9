"""Many runs in one process: what stays of them."""

from __future__ import annotations

import gc
import os
import shutil
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.runs import run_toy


@dataclass(frozen=True)
class Footprint:
    """What a process holds.

    Attributes:
        megabytes: of memory.
        threads: of the process.
        handles: of files.
    """

    megabytes: float
    threads: int
    handles: int

    @classmethod
    def now(cls) -> Footprint:
        """Of this process."""
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        handles = len(os.listdir("/proc/self/fd"))
        return cls(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, threading.active_count(), handles)


def soak(count: int, scratch: Path) -> Iterator[Footprint]:
    """Run again and again; gives the footprint after each run.

    Args:
        count: runs.
        scratch: a folder.
    """
    for number in range(count):
        storage = scratch / f"soak-{number}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run_toy(storage)
        shutil.rmtree(storage)
        yield Footprint.now()
