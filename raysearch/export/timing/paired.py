"""CPU time of a quantized file against the same network in float, both in onnxruntime."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from raysearch.export.onnx_qdq.session import load_session

WARM_UP = 2


def paired_seconds(paths: dict[str, Path], feed: dict[str, Any], rounds: int = 20) -> dict[str, float]:
    """Median CPU seconds of one run of each file, taken in turn in this process, one thread each.

    Args:
        paths: name → file.
        feed: arrays by input name, the same for all.
        rounds: runs that count; two more come first, which warm caches.
    """
    sessions = {name: load_session(str(path), threads=1) for name, path in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(rounds + WARM_UP):
        for name, session in sessions.items():
            start = time.process_time()
            session.run(None, feed)
            if number >= WARM_UP:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}
