"""`make chaos`: kills, damage, fuzz and a soak, and the table of what came of them.

    python -m tests.chaos [--kills 100] [--damages 2000] [--half 100] [--inputs 10000] [--runs 60] [--seed 0]

Writes benchmarks/results/chaos.md. Ends with 1 where anything but the same result or a named error came out.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.damage import damage_finished, damage_half
from tests.chaos.kills import kill_runs
from tests.chaos.record_files import fuzz_records
from tests.chaos.runs import RUN_ID, run_toy
from tests.chaos.soak import soak
from tests.chaos.tally import Tally
from tests.chaos.texts import fuzz_texts

PAGE = Path(__file__).parents[2] / "benchmarks" / "results" / "chaos.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    for name, count in (("kills", 100), ("damages", 2000), ("half", 100), ("inputs", 10_000), ("runs", 60)):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return report(options, Path(folder))


def report(options: argparse.Namespace, scratch: Path) -> int:
    """Do all of it, write the page, and give the exit status."""
    began = time.monotonic()
    run_toy(scratch / "whole")
    seconds = time.monotonic() - began
    finished = scratch / "whole" / RUN_ID
    lines = [
        "# Chaos",
        "",
        f"`{' '.join(['python -m tests.chaos', *sys.argv[1:]])}`",
        f"Python {platform.python_version()}, a run of every stage in this process, {seconds:.1f} s.",
        "",
    ]
    wrong: list[str] = []

    tally = Tally()
    fuzz_records(tally, options.inputs, options.seed)
    fuzz_texts(tally, options.inputs, options.seed, scratch)
    damage_finished(tally, finished, options.damages, options.seed)
    damage_half(tally, finished, options.half, options.seed, scratch)
    lines += table_of(tally)
    wrong += tally.escaped

    hits, differing = kill_runs(finished, seconds, options.kills, options.seed, scratch)
    lines += ["", f"Kills: {hits} signals at any moment of a run, {len(differing)} results that differ."]
    wrong += differing

    footprints = soak(options.runs, scratch)
    lines += ["", "| after run | MiB | threads | file handles |", "|---|---|---|---|"]
    for number in sorted({0, 1, len(footprints) // 2, len(footprints) - 1} & set(range(len(footprints)))):
        footprint = footprints[number]
        lines.append(
            f"| {number + 1} | {footprint.megabytes:.0f} | {footprint.threads} | {footprint.handles} |"
        )
    lines += ["", *(f"- {text}" for text in wrong)]
    PAGE.write_text("\n".join(lines).rstrip() + "\n")
    print(PAGE.read_text())
    return 1 if wrong else 0


def table_of(tally: Tally) -> list[str]:
    """A row a kind of input."""
    rows = [
        "| input | read, or the same | named error | anything else | slowest, s |",
        "|---|---|---|---|---|",
    ]
    for kind in sorted({kind for kind, _ in tally.counts}):
        counts = [str(tally.counts[kind, outcome]) for outcome in ("read", "named", "escaped")]
        rows.append(f"| {kind} | {' | '.join(counts)} | {tally.slowest[kind]:.2f} |")
    return rows


if __name__ == "__main__":
    sys.exit(main())
