"""What responses and rounding of a decoder cost: time in plain forwards, and peak memory over one replica.

Time: one process, one thread, CPU time; plain forwards take turns with the units. Memory: a process a stage,
by its peak resident size. Writes benchmarks/results/decoder_cost.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.responses import processor
from raysearch.calibration import calibrate
from raysearch.cluster.pool import LocalPool
from raysearch.config import CalibrationConfig, PlacementConfig, SensitivityConfig
from raysearch.config.rounding import RoundingConfig
from raysearch.evaluation import DataSet, Divergence, Replica, WorkerCache, default_forward
from raysearch.evaluation.vocabulary import positions
from raysearch.evaluation.vocabulary.positions import SHARD_VALUES
from raysearch.placement import place_quantizers
from raysearch.records import BitAssignment, QuantizerSetup, RangeTable
from raysearch.rounding import round_weights
from raysearch.sensitivity.responses import Method, measure_responses, respond, units_of
from raysearch.simulation import CACHE_BYTES, Judgement, MeasuredObjective

RESULT = Path(__file__).parent / "results" / "decoder_cost.md"
TOKENS, CHUNK, SHARDS = 128, 8, 2
SCHEMES = ("2g32a", "4g64")
STAGES = ("calibration", "responses", "trials")
IN_DOUBLE = 2**62
"""A size that no output has: everything is judged in float64, as before."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama.

    Attributes:
        words: of the vocabulary.
        width: of the hidden states.
        blocks: of the decoder.
    """

    words: int
    width: int
    blocks: int

    def __str__(self) -> str:
        return f"{self.words:,} words, width {self.width} and {self.blocks} blocks"


TIMED = (Shape(8_000, 128, 4), Shape(32_000, 128, 4))
WEIGHED = (Shape(32_000, 512, 8), Shape(8_000, 1536, 18))
FEW = 8
"""Options of the larger model whose responses are weighed, evenly from all: each costs half a forward."""
TINY = Shape(64, 128, 1)


class Decoder(nn.Module):
    """A Llama that gives logits."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.llama = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=shape.words,
                hidden_size=shape.width,
                intermediate_size=shape.width * 11 // 4,
                num_hidden_layers=shape.blocks,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=TOKENS,
                initializer_range=shape.width**-0.5,
                use_cache=False,
            )
        )

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.llama(input_ids=tokens).logits
        return logits


def prepare(shape: Shape) -> tuple[Replica, QuantizerSetup]:
    """The model with shards of as many windows as a run would make them of."""
    torch.manual_seed(0)
    model = Decoder(shape).eval()
    size = max(1, min(32, SHARD_VALUES // (TOKENS * shape.words)))
    shards = [torch.randint(0, shape.words, (size, TOKENS)) for _ in range(SHARDS)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = PlacementConfig(weight_schemes=SCHEMES, activation_bit_widths=())
        setup = place_quantizers(model, (shards[0][:1],), settings)
    data = {DataSet.CALIBRATION: shards, DataSet.SEARCH: shards}
    return Replica(model, default_forward, data, Divergence()), setup


def ranges_of(replica: Replica, setup: QuantizerSetup) -> RangeTable:
    """Ranges of the weights."""
    settings = CalibrationConfig(weights="min_max", activations="min_max")
    return calibrate(setup, LocalPool(replica), SHARDS, settings)


def cpu_seconds(run: Callable[[], Any]) -> float:
    """CPU time of a call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def responses_in_forwards(replica: Replica, setup: QuantizerSetup, ranges: RangeTable, large: int) -> float:
    """All responses over as many plain forwards; a plain one runs beside each unit.

    Args:
        replica: the model and its shards.
        setup: the quantizers.
        ranges: of the weights.
        large: values of a sample from which outputs are judged by position.
    """
    positions.LARGE_OUTPUT = large
    replica = replace(replica, cache=WorkerCache())
    spent = plain = 0.0
    units: dict[Any, Any] = units_of(setup.options(), SHARDS, CHUNK)
    for shard, options, mode in units.values():
        batch = replica.shard(DataSet.CALIBRATION, shard)
        plain += len(options) * cpu_seconds(lambda b=batch: replica.run(replica.model, b))
        arguments = (setup, ranges, Method(4096, 0, CACHE_BYTES), shard, options, mode)
        spent += cpu_seconds(lambda a=arguments: respond(replica, *a))
    return spent / plain


def timed(shape: Shape) -> str:
    """A row of the table of times."""
    replica, setup = prepare(shape)
    ranges = ranges_of(replica, setup)
    large = positions.LARGE_OUTPUT
    before = responses_in_forwards(replica, setup, ranges, IN_DOUBLE)
    after = responses_in_forwards(replica, setup, ranges, large)
    batch = replica.shard(DataSet.CALIBRATION, 0)
    plain = SHARDS * cpu_seconds(lambda: replica.run(replica.model, batch))
    rounding = cpu_seconds(lambda: round_weights(setup, ranges, LocalPool(replica), SHARDS, RoundingConfig()))
    count = len(setup.options())
    return (
        f"| {shape.words:,} | {shape.width} | {shape.blocks} | {len(batch)} | {count} | "
        f"{before:.2f} | {after:.2f} | {rounding / plain / count:.2f} |"
    )


def peak_bytes() -> int:
    """Peak resident size of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def weigh(shape: Shape, stage: str, folder: Path) -> None:
    """A process's own work: one stage, after which it prints its peak."""
    # What is imported when a model is captured is no part of any.
    prepare(TINY)
    base = peak_bytes()
    replica, setup = prepare(shape)
    model = sum(parameter.nbytes for parameter in replica.model.parameters())
    path = folder / "ranges.pickle"
    cache = min(CACHE_BYTES, max(2**26, model // 4))
    pool = LocalPool(replica)
    placed = peak_bytes()
    if stage == "calibration":
        path.write_bytes(pickle.dumps(ranges_of(replica, setup)))
    else:
        ranges = pickle.loads(path.read_bytes())
    if stage == "responses" and shape == WEIGHED[0]:
        settings = SensitivityConfig(option_chunk=CHUNK)
        measure_responses(setup, ranges, pool, 1, settings, cache_bytes=cache)
    elif stage == "responses":
        options = setup.options()
        few = options[:: len(options) // FEW][:FEW]
        # Shard 1, since the first one's check runs an option twice.
        respond(replica, setup, ranges, Method(4096, 0, cache), 1, few, "later")
    if stage == "trials":
        measure = MeasuredObjective(setup, ranges, pool, Judgement(), cache_bytes=cache)
        trials = {index: BitAssignment.extreme(setup, index - 1) for index in range(2)}
        measure(trials, range(2 if shape == WEIGHED[0] else 1))
    print(json.dumps({"base": base, "model": model, "placed": placed, "peak": peak_bytes()}))


def weighed(index: int, stages: tuple[str, ...]) -> list[str]:
    """Rows of the table of peaks, a process a stage, of one of the shapes that are weighed."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for stage in stages:
            command = [sys.executable, "-m", "benchmarks.decoder_cost", "--stage", stage, "--folder", folder]
            command += ["--shape", str(index)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True)
            sizes = json.loads(answer.stdout.splitlines()[-1])
            placed, peak = ((sizes[name] - sizes["base"]) / sizes["model"] for name in ("placed", "peak"))
            megabytes = f"{sizes['model'] / 1e6:.0f}"
            rows.append(f"| {WEIGHED[index]} | {stage} | {megabytes} | {placed:.2f} | {peak:.2f} |")
            print(rows[-1], flush=True)
    return rows


def page(times: list[str], peaks: list[str], date: str) -> str:
    """The page of results."""
    head = "\n".join(times)
    return f"""\
# What a decoder costs

{date}, {processor()}, torch {torch.__version__}, one thread.
Made by `python -m benchmarks.decoder_cost`. Untrained Llamas, windows of {TOKENS} tokens, all weights at
{" and ".join(SCHEMES)}, {SHARDS} shards of as many windows as a run makes them of.

## Time

CPU time in plain forwards of the float model, one an option and shard. Responses: recordings, weights, the
check of the first shard, judging and sketches included, {CHUNK} options a unit; "before" judges in float64,
in the same process. Rounding: moments and codes of all weights, default settings.
Caches are of 1 GiB here, which holds all quantized weights and outputs of layers; a run on so small a
language model keeps 64 MiB, and makes weights anew that do not fit.

| words | width | blocks | windows | options | responses before | responses | rounding |
|---|---|---|---|---|---|---|---|
{head}

## Memory

Peak resident size of a process that does one stage, less Python and its libraries, over the bytes of the
float model; placed: after capturing and placing, before the stage. The driver's part of a stage runs in the
same process. Of the larger model {FEW} options' responses are measured, evenly from all, and trials on one
shard. What does not grow with the model is the logits of a shard, 64 MiB a copy, and what glibc keeps of
freed memory. Of rounding `benchmarks/results/rounding.md` has the peaks.

| Llama of | stage | model, MB | placed | peak |
|---|---|---|---|---|
{chr(10).join(peaks)}
"""


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--shape", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.stage:
        weigh(WEIGHED[options.shape], options.stage, options.folder)
        return
    times = []
    for shape in TIMED:
        times.append(timed(shape))
        print(times[-1], flush=True)
    peaks = [row for index in range(len(WEIGHED)) for row in weighed(index, STAGES)]
    text = page(times, peaks, options.date)
    print(text)
    RESULT.write_text(text)


if __name__ == "__main__":
    main()
