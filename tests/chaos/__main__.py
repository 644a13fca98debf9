"""`make chaos`: kills, damage, fuzz and a soak, and the table of what came of them.

    python -m tests.chaos [--parts records texts tasks finished half killed kills soak]
                          [--kills 100] [--damages 2000] [--half 100] [--inputs 10000] [--runs 60] [--seed 0]
                          [--kinds budget scope …] [--piece FILE]
    python -m tests.chaos --join FILE …

Writes the page in benchmarks/results/; with --piece only that file, and --join makes the page of such files.
Ends with 1 where anything but the same result or a named error came out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.damage import damage_finished, damage_half, damage_killed
from tests.chaos.kills import kill_runs
from tests.chaos.piece import Piece
from tests.chaos.record_files import fuzz_records
from tests.chaos.runs import RUN_ID, run_toy
from tests.chaos.soak import soak
from tests.chaos.tasks import fuzz_tasks
from tests.chaos.texts import INPUTS, fuzz_texts

PAGE = Path(__file__).parents[2] / "benchmarks" / "results" / "chaos.md"
PARTS = ("records", "texts", "tasks", "finished", "half", "killed", "kills", "soak")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    for name, count in (("kills", 100), ("damages", 2000), ("half", 100), ("inputs", 10_000), ("runs", 60)):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--kinds", nargs="*", choices=INPUTS, default=INPUTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--piece", type=Path)
    parser.add_argument("--join", type=Path, nargs="*")
    options = parser.parse_args()
    piece = Piece()
    if options.join:
        for path in options.join:
            piece.add(Piece.load(path))
    else:
        piece.commands = [" ".join(["python -m tests.chaos", *_shown(sys.argv[1:])])]
        with tempfile.TemporaryDirectory() as folder:
            do_parts(piece, options, Path(folder))
    if options.piece:
        piece.save(options.piece)
    else:
        PAGE.write_text(piece.page())
    print(piece.page())
    return 1 if piece.tally.escaped or piece.wrong else 0


def do_parts(piece: Piece, options: argparse.Namespace, scratch: Path) -> None:
    """Do the parts that the options name, and count what comes of them."""
    if "records" in options.parts:
        fuzz_records(piece.tally, options.inputs, options.seed)
    if "texts" in options.parts:
        fuzz_texts(piece.tally, options.inputs, options.seed, scratch, options.kinds)
    if "tasks" in options.parts:
        fuzz_tasks(piece.tally, options.inputs, options.seed, scratch)
    if not {"finished", "killed", "half", "kills", "soak"} & set(options.parts):
        return

    began = time.monotonic()
    run_toy(scratch / "finished")
    seconds = time.monotonic() - began
    finished = scratch / "finished" / RUN_ID
    if "finished" in options.parts:
        damage_finished(piece.tally, finished, options.damages, options.seed)
    if "half" in options.parts:
        damage_half(piece.tally, finished, options.half, options.seed, scratch)
    if "killed" in options.parts:
        damage_killed(piece.tally, finished, seconds, options.half, options.seed, scratch)
    if "kills" in options.parts:
        kill_runs(piece, finished, seconds, options.kills, options.seed, scratch)
    if "soak" in options.parts:
        for footprint in soak(options.runs, scratch):
            piece.footprints.append(footprint)
            if options.piece:
                piece.save(options.piece)


def _shown(arguments: list[str]) -> list[str]:
    """The arguments but the file of the piece."""
    if "--piece" not in arguments:
        return arguments
    at = arguments.index("--piece")
    return arguments[:at] + arguments[at + 2 :]


if __name__ == "__main__":
    sys.exit(main())
