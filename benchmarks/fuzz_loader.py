"""Damaged and hostile model folders against the loader: only errors of raysearch may come out.

Files of a small exported folder are mutated and the manifest's hashes are made to fit, so that the parsers
are what is tested. Memory is limited to 2 GiB beyond what the process has at the start. Writes
results/fuzz_loader.md.

    python -m benchmarks.fuzz_loader [--count 10000] [--seed 0]
"""

from __future__ import annotations

import argparse
import collections
import random
import resource
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.problems.damaged_folders import OneLayer, damage, small_folder
from raysearch.api import inspect  # noqa: F401  (imported before memory is limited)
from raysearch.errors import RaysearchError
from raysearch.export import load_model

SPARE_BYTES = 2 << 30


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        report(Path(scratch), options.count, options.seed)


def report(scratch: Path, count: int, seed: int) -> None:
    source = small_folder(scratch / "source")
    load_model(source)
    load_model(source, OneLayer)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    slowest, start = 0.0, time.perf_counter()
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        name = damage(source, scratch / "damaged", rng)
        began = time.perf_counter()
        try:
            load_model(scratch / "damaged", OneLayer if number % 4 == 0 else None)
            outcome = "loaded"
        except RaysearchError as error:
            outcome = type(error).__name__
        except BaseException as error:
            print(f"input {number} of seed {seed}, {name}: {error!r:.300}", flush=True)
            outcome = f"ESCAPED {type(error).__name__}"
        slowest = max(slowest, time.perf_counter() - began)
        counts[name, outcome] += 1
        if number % 1000 == 999:
            print(number + 1, "inputs", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    seconds = time.perf_counter() - start
    summary = (
        f"`python -m benchmarks.fuzz_loader --count {count} --seed {seed}`, torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread: {count} inputs in {seconds:.0f} s, the slowest {slowest:.1f} s, "
        f"peak memory {peak} MiB. Every fourth input is loaded with a factory. Hashes in the manifest fit "
        f"the damaged file. 'loaded' is damage that changes only values, or nothing."
    )
    lines = [
        "# The loader against damaged folders",
        "",
        summary,
        "",
        "| damaged file | outcome | inputs |",
        "|---|---|---|",
        *(f"| {name} | {outcome} | {number} |" for (name, outcome), number in sorted(counts.items())),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if count >= 1000:
        (Path(__file__).parent / "results" / "fuzz_loader.md").write_text(text)


if __name__ == "__main__":
    main()
