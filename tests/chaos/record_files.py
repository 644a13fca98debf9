"""Damaged files of every record against their readers, without the seals that refuse them before."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import numpy as np

from raysearch.artifacts import codecs
from raysearch.artifacts.codecs import Codec, SavedFile
from raysearch.artifacts.owner import OWNER, Owner
from raysearch.artifacts.run_record import read_run_record
from raysearch.records import (
    Candidate,
    EpochMetrics,
    Finalist,
    Finalists,
    Granularity,
    LeastCost,
    QuantizerRange,
    Refinement,
    Reused,
    RoundedWeight,
    RoundingTable,
    Scheme,
)
from tests.chaos.mutations import damaged_record
from tests.chaos.tally import Tally
from tests.support.old_run_task import RUN

CODECS: tuple[Codec[Any], ...] = (
    *(record for record in codecs.RECORDS if record is not codecs.REPORT), codecs.TRIALS, OWNER,
)  # fmt: skip


def _small_rounding() -> RoundingTable:
    draw = np.random.default_rng(0)
    codes = draw.integers(-8, 8, (3, 4)).astype(np.int8)
    scale, zero_point = np.ones(3, np.float32), np.zeros(3, np.int32)
    weight = RoundedWeight(codes, scale, zero_point, True, Granularity(0), 2.0, 1.0, "gptq", ("a note",))
    return RoundingTable({("a.weight", Scheme(4)): weight, ("b|odd.weight", Scheme(5)): weight})


def _small_refinement() -> Refinement:
    weight = QuantizerRange(np.ones(1, np.float32), np.zeros(1, np.int32), True, np.ones((2, 2), np.int8))
    ranges = {("a.weight", Scheme(4)): weight}
    return Refinement(
        Candidate("tuned", ranges, {"norm.bias": np.ones(3)}), {"tuned": 0.5}, {"tuned": 0.1}, 8
    )


@cache
def record_files() -> dict[Codec[Any], tuple[bytes, ...]]:
    """The content of each record's files: of a saved run, and made up where it has none of them."""
    made: dict[Codec[Any], Any] = {
        codecs.ROUNDING: _small_rounding(),
        codecs.REFINEMENT: _small_refinement(),
        codecs.LEAST_COST: LeastCost("size", 9.0, "loss", "loss=1%", 0.01, 0.5, 0.502, 0.002),
        codecs.FINALISTS: Finalists(
            (Finalist(1, 0.5, (EpochMetrics(-1, {"loss": 2.0}),)),), "loss", 1, None, "4:ab"
        ),
        codecs.REUSED: Reused("first", ("calibration",), 3),
        OWNER: Owner.of_this_process(),
    }
    files: dict[Codec[Any], tuple[bytes, ...]] = {}
    for codec in CODECS:
        if codec in made:
            files[codec] = codec.write(made[codec])
        else:
            files[codec] = tuple((RUN / name).read_bytes() for name in codec.files)
    return files


def fuzz_records(tally: Tally, count: int, seed: int) -> None:
    """Read every record with one of its files damaged.

    Args:
        tally: counts what came of it, by the file.
        count: damaged files in all.
        seed: of the damages.
    """
    files = record_files()
    run_json = (RUN / "run.json").read_bytes()
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        place = number % (len(CODECS) + 1)
        if place == len(CODECS):
            damaged = damaged_record("run.json", run_json, draw)
            tally.take("run.json", f"{seed}/{number}", lambda data=damaged: read_run_record(data, "run.json"))
            continue
        codec = CODECS[place]
        contents = list(files[codec])
        which = draw.randrange(len(contents))
        name = codec.files[which]
        contents[which] = damaged_record(name, contents[which], draw)
        saved = [SavedFile(data, file) for data, file in zip(contents, codec.files, strict=True)]
        tally.take(name, f"{seed}/{number}", lambda codec=codec, saved=saved: codec.read(saved))
