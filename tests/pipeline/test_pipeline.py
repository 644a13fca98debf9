"""The template of a stage: its record is read, or computed and saved and its units cleared."""

import numpy as np
import pytest

import raysearch
from raysearch.artifacts import RunStore, UnitLog, codecs
from raysearch.pipeline import pipeline
from tests.support.command_line import QUICK
from tests.support.toy_task import make_task

SETTINGS = [
    *QUICK,
    'export.targets=["packed"]',
    "training.epochs=1",
    "search.finalists_trained=2",
    "search.finalists_steps=1",
]
CONFIG = raysearch.load_config(assignments=SETTINGS)
STAGES = [value for value in vars(pipeline).values() if isinstance(value, pipeline.Stage)]


def run(storage, **options):
    return raysearch.run(
        make_task(), "avg_bits<=4", storage, config=CONFIG, run_id="run", workers=0, **options
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    storage = tmp_path_factory.mktemp("pipeline")
    run(storage)
    return RunStore(storage, "run")


def stamps(store):
    """When each file of each stage's record was written."""
    names = [name for stage in STAGES for name in stage.record.files]
    return {name: store.storage.local_path(name).stat().st_mtime_ns for name in names}


@pytest.mark.slow
def test_the_stages_are_those_of_the_architecture(finished):
    names = ["calibration", "rounding", "sensitivity", "search", "finalists"]
    names += ["refinement", "training", "evaluation", "export"]
    assert [stage.name for stage in STAGES] == names
    before = ["task", "checks", "preflight", "workers"]
    assert list(finished.load(codecs.RESULT).seconds) == [*before, *names]
    assert all(finished.has(stage.record) for stage in STAGES)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_only_the_stage_whose_record_is_gone_is_computed_again(finished, stage):
    log = UnitLog(finished)
    before = stamps(finished)
    contents = {name: finished.storage.read_bytes(name) for name in stage.record.files}
    for part in stage.parts:
        log.append(part, ("left by a run that was killed",), {"value": np.zeros(1)})
    finished.storage.delete_file(stage.record.files[-1])
    finished.storage.delete_file("result.json")
    run(finished.storage.local_path().parent, resume=True)
    after = stamps(finished)
    rewritten = {name for name in before if after[name] != before[name]}
    assert rewritten == set(stage.record.files)
    assert {name: finished.storage.read_bytes(name) for name in rewritten} == contents
    assert all(log.read(part) == {} for part in stage.parts)
    assert finished.has(codecs.RESULT)
