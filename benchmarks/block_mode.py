"""Memory of a worker that holds one block at a time, over one replica, and what it costs in plain forwards.

Memory: a process makes the model and writes its parts; a process a stage then does what a worker does, and
tells its peak resident size. Time: whole replicas and single blocks take turns in one process; CPU time of
one thread. Writes benchmarks/results/block_mode.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pickle
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.decoder_cost import TOKENS, Decoder, Shape, cpu_seconds, peak_bytes, prepare, ranges_of
from benchmarks.responses import processor
from raysearch.artifacts import Storage
from raysearch.blockwise import (
    BlockFiles,
    BlockReplica,
    Chain,
    StoredRanges,
    find_chain,
    pass_blocks,
    without_weights,
)
from raysearch.cluster.pool import LocalPool
from raysearch.config import SensitivityConfig
from raysearch.config.rounding import RoundingConfig
from raysearch.determinism import reproducible
from raysearch.evaluation import DataSet, Divergence, Replica, default_forward
from raysearch.records import BitAssignment, QuantizerRange, QuantizerSetup, RangeTable, Scheme
from raysearch.rounding import round_weights
from raysearch.sensitivity.responses import Method, measure_responses, respond
from raysearch.simulation import Judgement, MeasuredObjective, repeated_blocks

RESULT = Path(__file__).parent / "results" / "block_mode.md"
CHUNK, SHARDS, WINDOWS = 8, 2, 4
WEIGHED = Shape(8_000, 1536, 18)
TIMED = Shape(8_000, 128, 6)
STAGES = ("float pass", "moments and rounding", "responses", "a trial")


def chain_of(model: nn.Module, batch: Any) -> Chain:
    """The model's blocks."""
    blocks = repeated_blocks(model)
    names = [name for name, module in model.named_modules() if id(module) in blocks]
    with torch.no_grad():
        return find_chain(model, names, lambda: model(batch[:1]))


def few_windows(replica: Replica) -> Replica:
    """The same with shards of few windows."""
    shards = {data: [batch[:WINDOWS] for batch in batches] for data, batches in replica.shards.items()}
    return replace(replica, shards=shards)


def block_replica(replica: Replica, files: BlockFiles) -> BlockReplica:
    """What a worker holds, where the parts are written."""
    chain = chain_of(replica.model, replica.shards[DataSet.CALIBRATION][0])
    files.write_weights(replica.model)
    model = without_weights(replica.model)
    return BlockReplica(model, default_forward, replica.shards, Divergence(), chain=chain, files=files)


def write_model(folder: Path) -> None:
    """The driver's part: the model, its quantizers and ranges, and its parts as files."""
    replica, setup = prepare(WEIGHED)
    replica = few_windows(replica)
    model = sum(parameter.nbytes for parameter in replica.model.parameters())
    ranges = ranges_of(replica, setup)
    files = BlockFiles(Storage(folder))
    worker = block_replica(replica, files)
    rest = (worker.model, worker.chain, worker.shards, setup, model)
    (folder / "rest.pickle").write_bytes(pickle.dumps(rest))
    # Nearest codes stand for those of rounding, which are as large.
    rounded = nearest_codes(replica, setup, ranges)
    stored = StoredRanges.store(RangeTable(ranges.ranges, rounded), worker.chain, files)
    (folder / "ranges.pickle").write_bytes(pickle.dumps(stored))
    part = first_block(setup, worker.chain)
    of_part = {key: value for key, value in ranges.ranges.items() if key[0] in part.points}
    (folder / "first.pickle").write_bytes(pickle.dumps((part, RangeTable(of_part))))


def nearest_codes(
    replica: Replica, setup: QuantizerSetup, ranges: RangeTable
) -> dict[tuple[str, Scheme], QuantizerRange]:
    """The ranges with the codes of nearest rounding."""
    rounded: dict[tuple[str, Scheme], QuantizerRange] = {}
    for name in setup.points:
        part = replace(setup, points={name: setup.points[name]}, groups={name: setup.groups[name]})
        table = round_weights(part, ranges, LocalPool(replica), SHARDS, RoundingConfig(method="nearest"))
        rounded.update(table.put_into(RangeTable({})).rounded)
    return rounded


def first_block(setup: QuantizerSetup, chain: Chain) -> QuantizerSetup:
    """The weights of the first block, and those outside of the blocks: every part is as one of these."""
    groups = {}
    for name, group in setup.groups.items():
        if all(chain.part_of(point) <= 0 for point in group.points):
            groups[name] = group
    points = {point: setup.points[point] for group in groups.values() for point in group.points}
    return replace(setup, points=points, groups=groups)


def library_bytes() -> int:
    """Peak of this process with all that it imports: a tiny model has gone the same way."""
    with reproducible(True), torch.no_grad():
        Decoder(Shape(64, 16, 2)).eval()(torch.zeros(1, TOKENS, dtype=torch.long))
    return peak_bytes()


def weigh(stage: str, folder: Path) -> None:
    """A worker's process: one stage, after which it prints its peak."""
    base = library_bytes()
    model, chain, shards, setup, size = pickle.loads((folder / "rest.pickle").read_bytes())
    ranges = pickle.loads((folder / "ranges.pickle").read_bytes())
    files = BlockFiles(Storage(folder))
    replica = BlockReplica(model, default_forward, shards, Divergence(), chain=chain, files=files)
    pool = LocalPool(replica)
    if stage == "float pass":
        pass_blocks(pool, chain, files, DataSet.CALIBRATION, SHARDS)
        pass_blocks(pool, chain, files, DataSet.SEARCH, 1)
    if stage == "moments and rounding":
        part, of_part = pickle.loads((folder / "first.pickle").read_bytes())
        round_weights(part, of_part, pool, SHARDS, RoundingConfig(unit_shards=1), chain=chain)
    if stage == "responses":
        # Shard 1, since the first one's check runs an option twice.
        options = tuple(option for option in setup.options() if chain.part_of(option[0]) == 0)
        respond(replica, setup, ranges, Method(4096, 0, 0), 1, options[:CHUNK], "later")
    if stage == "a trial":
        measure = MeasuredObjective(setup, ranges, pool, Judgement())
        measure({0: BitAssignment.extreme(setup, -1)}, range(1))
    print(json.dumps({"base": base, "model": size, "peak": peak_bytes()}))


def run_process(*arguments: str) -> str:
    """This module in a process of its own; what it printed last."""
    command = [sys.executable, "-m", "benchmarks.block_mode", *arguments]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return (answer.stdout.splitlines() or [""])[-1]


def weighed(folder: Path) -> list[str]:
    """Rows of the table of peaks, a process a stage."""
    rows = []
    if not (folder / "rest.pickle").exists():
        run_process("--write", "--folder", str(folder))
    for stage in STAGES:
        sizes = json.loads(run_process("--stage", stage, "--folder", str(folder)))
        share = (sizes["peak"] - sizes["base"]) / sizes["model"]
        row = f"| {stage} | {sizes['model'] / 1e6:.0f} | {sizes['peak'] / 1e6:.0f} | {share:.2f} |"
        rows.append(row)
        print(row, flush=True)
    return rows


def timed() -> list[str]:
    """Rows of the table of times: whole replicas beside single blocks."""
    whole_replica, setup = prepare(TIMED)
    whole_replica = few_windows(whole_replica)
    ranges = ranges_of(whole_replica, setup)
    batch = whole_replica.shard(DataSet.CALIBRATION, 0)
    with tempfile.TemporaryDirectory() as folder:
        files = BlockFiles(Storage(folder))
        by_block = block_replica(whole_replica, files)
        pool = LocalPool(by_block)
        # The first call of all makes what later ones find.
        whole_replica.run(whole_replica.model, batch)
        plain = cpu_seconds(lambda: [whole_replica.run(whole_replica.model, batch) for _ in range(SHARDS)])
        passing = cpu_seconds(lambda: pass_blocks(pool, by_block.chain, files, DataSet.CALIBRATION, SHARDS))
        num_responses = len(setup.options())
        rows = [f"| float pass | – | {passing / plain:.2f} | forwards |"]
        for name, stage in (("moments and rounding", rounding), ("responses", responses)):
            spent = [
                stage(LocalPool(whole_replica), setup, ranges, None),
                stage(pool, setup, ranges, by_block.chain),
            ]
            unit, count = ("forwards", 1) if stage is rounding else ("forwards an option", num_responses)
            values = " | ".join(f"{seconds / plain / count:.2f}" for seconds in spent)
            rows.append(f"| {name} | {values} | {unit} |")
            print(rows[-1], flush=True)
    return rows


def rounding(pool: LocalPool, setup: QuantizerSetup, ranges: RangeTable, chain: Chain | None) -> float:
    """CPU time of the rounding stage."""
    return cpu_seconds(lambda: round_weights(setup, ranges, pool, SHARDS, RoundingConfig(), chain=chain))


def responses(pool: LocalPool, setup: QuantizerSetup, ranges: RangeTable, chain: Chain | None) -> float:
    """CPU time of all responses."""
    settings = SensitivityConfig(option_chunk=CHUNK)
    return cpu_seconds(lambda: measure_responses(setup, ranges, pool, SHARDS, settings))


def page(times: list[str], peaks: list[str], date: str) -> str:
    """The page of results."""
    return f"""\
# Block by block: memory of a worker, and time

{date}, {processor()}, torch {torch.__version__}, one thread.
Made by `python -m benchmarks.block_mode`. Untrained Llamas, {SHARDS} shards of {WINDOWS} windows of
{TOKENS} tokens.

## Memory

{WEIGHED.blocks} blocks of width {WEIGHED.width}, {WEIGHED.words:,} words. A process that does what a worker
does in a stage: its peak resident size, and that less Python and its libraries over the bytes of the float
model. Rounding: of the first block and of what lies outside of the blocks. Responses: {CHUNK} options of the
first block, which go through all.

| stage | float model, MB | peak, MB | peak over a replica |
|---|---|---|---|
{chr(10).join(peaks)}

## Time

{TIMED.blocks} blocks of width {TIMED.width}, {TIMED.words:,} words. CPU time in plain forwards of all shards
by the float model, reading the parts from a local disk included; {CHUNK} options a unit.

| stage | whole replica | block by block | unit |
|---|---|---|---|
{chr(10).join(times)}
"""


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--times", action="store_true", help="print the table of times alone")
    parser.add_argument("--folder", type=Path, help="where the parts are, and stay; default: a temporary one")
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.write:
        write_model(options.folder)
        return
    if options.stage:
        weigh(options.stage, options.folder)
        return
    times = timed()
    if options.times:
        print("\n".join(times))
        return
    with tempfile.TemporaryDirectory() as folder:
        peaks = weighed(options.folder or Path(folder))
    text = page(times, peaks, options.date)
    print(text)
    RESULT.write_text(text)


if __name__ == "__main__":
    main()
