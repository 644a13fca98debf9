"""Any file of a run damaged: what is asked of the run is the same as before, or a named error."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from raysearch.artifacts import codecs, resolve_run
from raysearch.saved_run import load_run
from tests.chaos.kills import run_and_kill
from tests.chaos.mutations import damaged_bytes
from tests.chaos.runs import half_run, outcome_of, run_toy
from tests.chaos.tally import Tally

STAGES = (
    ("ranges.safetensors", "rounding.safetensors", "responses.arrow", "traces.parquet", "sensitivity.parquet",
     "best.json", "refinement.safetensors", "finetune.json", "metrics.json", "model/manifest.json"),
    ("responses.arrow", "traces.parquet", "sensitivity.parquet", "best.json", "refinement.safetensors",
     "finetune.json", "metrics.json", "model/manifest.json"),
    ("best.json", "refinement.safetensors", "finetune.json", "metrics.json", "model/manifest.json"),
    ("finetune.json", "metrics.json", "model/manifest.json"),
    ("model/manifest.json",),
    (),
)  # fmt: skip
"""What a run lacks that was killed in each stage."""

RESOLVED_FROM = ("setup.json", "responses.arrow", "traces.parquet", "sensitivity.parquet")


def _records(run: Path) -> dict[str, Any]:
    store = resolve_run(run)
    return {codec.files[-1]: repr(store.load(codec)) for codec in codecs.RECORDS if store.has(codec)}


def _resolved(run: Path) -> Any:
    trial = load_run(run).resolve("avg_bits<=3.5")
    return trial.assignment.as_json, trial.predicted


def _copied(run: Path) -> dict[str, bytes]:
    to = run.parent / "to"
    shutil.rmtree(to, ignore_errors=True)
    load_run(run).retrieve(to)
    names = {name for codec in codecs.RECORDS if codec.sealed for name in codec.files}
    paths = (path for path in to.rglob("*") if path.is_file())
    return {path.name: path.read_bytes() for path in paths if path.name in names or "model" in path.parts}


UNSEALED = ("status.json", "report.html")
"""What may be another after damage: nothing is computed from it."""

QUESTIONS: dict[str, Callable[[Path], Any]] = {"records": _records, "retrieve": _copied, "resolve": _resolved}


def damage_finished(
    tally: Tally, run: Path, count: int, seed: int, questions: Collection[str] = tuple(QUESTIONS)
) -> None:
    """Damage one file of a finished run at a time, any of them, and ask what is asked of runs.

    Args:
        tally: counts answers by question; one that is not as before counts as escaped.
        run: its folder, which is left as it was.
        count: damages.
        seed: of the damages.
        questions: what is asked.
    """
    expected = {name: QUESTIONS[name](run) for name in questions}
    files = sorted(path for path in run.rglob("*") if path.is_file())
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        path = draw.choice(files)
        before = path.read_bytes()
        path.write_bytes(damaged_bytes(before, draw))
        name = str(path.relative_to(run))
        for question in questions:
            ask = QUESTIONS[question]
            # An answer takes a second, and reads these files alone.
            if question == "resolve" and name not in RESOLVED_FROM:
                continue
            answer = tally.take(f"finished: {question}", f"{seed}/{number} {name}", lambda ask=ask: ask(run))
            if answer is not None and _differs(answer, expected[question], name):
                tally.escaped.append(f"{question} after {seed}/{number} {name}: another answer")
        path.write_bytes(before)


def _differs(answer: Any, expected: Any, damaged: str) -> bool:
    if not isinstance(answer, dict):
        return bool(answer != expected)
    names = answer.keys() | expected.keys()
    if damaged in UNSEALED:
        names -= set(UNSEALED)
    return any(answer.get(name) != expected.get(name) for name in names)


def damage_half(tally: Tally, finished: Path, count: int, seed: int, scratch: Path) -> None:
    """Damage one file of a run that was killed in some stage, and go on with it.

    Args:
        tally: counts what came of it; a result other than the finished run's counts as escaped.
        finished: the folder of the same run without damage.
        count: damages.
        seed: of the damages.
        scratch: a folder.
    """

    def cut_off(storage: Path, draw: random.Random) -> None:
        half_run(finished, storage / finished.name, draw.choice(STAGES))

    _go_on_damaged(tally, "half", cut_off, finished, range(count), seed, scratch)


def damage_killed(tally: Tally, finished: Path, seconds: float, count: int, seed: int, scratch: Path) -> None:
    """Kill a run at any moment, damage any one of its files, units too, and go on with it.

    Args:
        tally: counts what came of it; a result other than the finished run's counts as escaped.
        finished: the folder of the same run without damage.
        seconds: what that took.
        count: damages.
        seed: of the draws.
        scratch: a folder.
    """

    def killed(storage: Path, draw: random.Random) -> None:
        run = storage / finished.name
        # One that was done before the signal gives its result without a look at anything else.
        while not (run / "run.json").exists() or (run / "result.json").exists():
            shutil.rmtree(storage, ignore_errors=True)
            run_and_kill(storage, draw.uniform(0.1, 0.8) * seconds, draw)

    _go_on_damaged(tally, "killed", killed, finished, range(count), seed, scratch)


def _go_on_damaged(
    tally: Tally,
    kind: str,
    begin: Callable[[Path, random.Random], None],
    finished: Path,
    numbers: range,
    seed: int,
    scratch: Path,
) -> None:
    """Damage a file of an unfinished run, and go on with it.

    Args:
        tally: counts what came of it.
        kind: of unfinished run.
        begin: makes one in a storage.
        finished: the folder of the same run without damage.
        numbers: of the damages.
        seed: of their draws.
        scratch: a folder.
    """
    expected = outcome_of(finished)
    for number in numbers:
        draw = random.Random(f"{kind}/{seed}/{number}")
        storage = scratch / kind
        shutil.rmtree(storage, ignore_errors=True)
        begin(storage, draw)
        run = storage / finished.name
        path = draw.choice(sorted(path for path in run.rglob("*") if path.is_file()))
        path.write_bytes(damaged_bytes(path.read_bytes(), draw))
        shown = f"{seed}/{number} {path.relative_to(run)}"
        result = tally.take(f"{kind}: resume", shown, lambda storage=storage: run_toy(storage, resume=True))
        if result is not None and outcome_of(run) != expected:
            tally.escaped.append(f"{kind}: resume after {shown}: another result")
