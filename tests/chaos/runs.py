"""Small runs that are damaged, killed, or made again and again."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import raysearch
from raysearch.artifacts import RunStore, codecs, resolve_run
from raysearch.records import RunResult
from tests.support import toy_task
from tests.support.command_line import QUICK
from tests.support.old_run_task import RUN

SETTINGS = [*QUICK, "rounding.unit_shards=1", "training.epochs=1", 'export.targets=["packed"]']
RUN_ID = "run"


def run_toy(storage: Path, *, resume: bool = False, settings: Sequence[str] = SETTINGS) -> RunResult:
    """A run of every stage in a second or two, in this process."""
    config = raysearch.load_config(assignments=settings)
    return raysearch.run(
        toy_task.make_task(), "avg_bits<=3.5", storage, config=config, run_id=RUN_ID, workers=0, resume=resume
    )


def outcome_of(folder: Path) -> dict[str, Any]:
    """What of a finished run must not depend on what happened on the way: all records but times and seals."""
    store = resolve_run(folder)
    contents: dict[str, Any] = {}
    for codec in codecs.RECORDS:
        if codec in (codecs.STATUS, codecs.RESULT, codecs.REPORT, codecs.MANIFEST) or not store.has(codec):
            continue
        for name in codec.files:
            contents[name] = (folder / name).read_bytes()
    for path in sorted((folder / "checkpoints").glob("*.safetensors")):
        contents[path.name] = path.read_bytes()
    result = store.load(codecs.RESULT)
    contents["metrics"] = (result.float_metrics, result.quantized_metrics, result.assignment, result.costs)
    contents["weights"] = (folder / "model" / "model.safetensors").read_bytes()
    return contents


def sealed_copy(folder: Path) -> Path:
    """The run of an earlier version with seals as today's runs have them; nothing is computed."""
    earlier = resolve_run(RUN)
    record = earlier.open()
    store = RunStore(folder, RUN_ID)
    store.create(record["config"], record["fingerprints"], record["versions"])
    for codec in codecs.RECORDS:
        if codec is codecs.MANIFEST:
            store.save_model(RUN / "model")
            store.save_checkpoint("best.safetensors", (RUN / "checkpoints/best.safetensors").read_bytes())
        elif earlier.has(codec):
            store.save(codec, earlier.load(codec))
    return folder / RUN_ID


def half_run(finished: Path, folder: Path, missing: tuple[str, ...]) -> Path:
    """A copy of a finished run without some files, as a kill leaves it."""
    shutil.copytree(finished, folder)
    for name in (*missing, "result.json"):
        (folder / name).unlink(missing_ok=True)
    return folder
