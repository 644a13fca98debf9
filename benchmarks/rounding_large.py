"""Memory and time of rounding a layer of many inputs: a process a stage, by its peak resident size.

Writes its part of benchmarks/results/rounding.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.problems.page_sections import write_section
from benchmarks.responses import processor
from benchmarks.rounding import RESULT
from raysearch.calibration import calibrate
from raysearch.cluster.pool import LocalPool
from raysearch.config import CalibrationConfig, PlacementConfig
from raysearch.config.rounding import RoundingConfig
from raysearch.evaluation import DataSet, Divergence, Replica, default_forward
from raysearch.placement import place_quantizers
from raysearch.records import QuantizerSetup
from raysearch.rounding.round_weights import Work, make_targets, round_unit
from raysearch.rounding.row_slices import cut_into_units
from raysearch.rounding.second_moments import Moments, dtype_of_moments, observe_moments

WEIGHT = "0.weight"
TITLE = "Many inputs"
INPUTS = (2048, 4096, 8192, 14336)
TEXT = """\
{date}, {machine}, torch {torch}, one thread. Made by `python -m benchmarks.rounding_large`. A linear layer of
{rows:,} outputs at {scheme}, {shards} shards of {vectors} vectors. Peaks, in GB, are of a whole process that
does nothing else, {base:.2f} of them Python with its libraries; that of rounding holds the moments that it
was sent. A unit is what is done at once: some rows, with a factor of its own. Seconds are CPU time, on a
machine that did other things too.

| inputs | type | a matrix | moments: peak | s | rows of a unit | units | rounding: peak | s a unit |
|---|---|---|---|---|---|---|---|---|
{lines}
"""


def peak() -> float:
    """Peak resident size of this process, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def prepare(options: argparse.Namespace) -> tuple[Replica, QuantizerSetup]:
    """The layer and its data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(options.child, options.rows))
    generator = torch.Generator().manual_seed(1)
    shards = [torch.randn(options.vectors, options.child, generator=generator) for _ in range(options.shards)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = PlacementConfig(weight_schemes=(options.scheme,), activation_bit_widths=())
        setup = place_quantizers(model, (shards[0][:2],), settings)
    return Replica(model, default_forward, {DataSet.CALIBRATION: shards}, Divergence()), setup


def take(options: argparse.Namespace) -> dict[str, float]:
    """Moments of all shards, kept in the folder."""
    replica, _ = prepare(options)
    start = time.process_time()
    value = observe_moments(replica, [WEIGHT], 0, options.shards)
    seconds = time.process_time() - start
    reached = peak()
    np.savez(options.folder / "moments.npz", **value)  # type: ignore[arg-type]
    return {"peak": reached, "seconds": seconds}


def round_rows(options: argparse.Namespace) -> dict[str, float]:
    """The first unit of the layer's rounding."""
    replica, setup = prepare(options)
    with np.load(options.folder / "moments.npz") as arrays:
        moments = Moments.from_value(dict(arrays))
    ((readers, moment),) = moments.sums.items()
    parts = ((readers[0], moment),)
    ranges = calibrate(setup, LocalPool(replica), 0, CalibrationConfig(weights="min_max"))
    point = setup.points[WEIGHT]
    work = Work({WEIGHT: point}, {WEIGHT: make_targets(setup, ranges, point)}, RoundingConfig())
    units = cut_into_units([point], work.targets, parts)
    rows = units[0][0].last or options.rows
    start = time.process_time()
    round_unit(replica, work, units[0], parts, moments.num_samples)
    return {"peak": peak(), "seconds": time.process_time() - start, "units": len(units), "rows": rows}


def run_child(options: argparse.Namespace, stage: str, num_inputs: int, folder: Path) -> dict[str, Any]:
    """What a process of its own prints."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.rounding_large"]
    command += ["--child", str(num_inputs), "--stage", stage, "--folder", str(folder)]
    for name in ("rows", "shards", "vectors", "scheme"):
        command += [f"--{name}", str(getattr(options, name))]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    values: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    print(stage, num_inputs, values, flush=True)
    return values


def line_of(options: argparse.Namespace, num_inputs: int) -> str:
    """Both stages of a layer with so many inputs."""
    with tempfile.TemporaryDirectory() as name:
        moments = run_child(options, "moments", num_inputs, Path(name))
        rounding = run_child(options, "rounding", num_inputs, Path(name))
    dtype = dtype_of_moments(num_inputs)
    size = dtype.itemsize * num_inputs**2 / 1e9
    return (
        f"| {num_inputs:,} | {str(dtype).removeprefix('torch.')} | {size:.2f} | {moments['peak']:.2f} | "
        f"{moments['seconds']:.0f} | {rounding['rows']:,} | {rounding['units']} | {rounding['peak']:.2f} | "
        f"{rounding['seconds']:.0f} |"
    )


def main() -> None:
    """Measure and write the part of the page; or, as a child, one stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, nargs="+", default=INPUTS)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--vectors", type=int, default=2048)
    parser.add_argument("--scheme", default="4")
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        measure = take if options.stage == "moments" else round_rows
        print(json.dumps(measure(options)))
        return
    base = peak()
    lines = [line_of(options, num_inputs) for num_inputs in options.inputs]
    text = TEXT.format(
        date=options.date,
        machine=processor(),
        torch=torch.__version__,
        rows=options.rows,
        scheme=options.scheme,
        shards=options.shards,
        vectors=options.vectors,
        base=base,
        lines="\n".join(lines),
    )
    write_section(RESULT, TITLE, text)
    print(text)


if __name__ == "__main__":
    main()
