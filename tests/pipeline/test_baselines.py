"""What stands beside the answer of a run is measured as the answer is."""

import pytest
import torch

import raysearch
from raysearch.artifacts import codecs, resolve_run
from raysearch.controller import create_controller
from raysearch.evaluation.model.copies import private_copy
from raysearch.pipeline.stages import load_ranges
from raysearch.records import BitAssignment
from tests.support import toy_task
from tests.support.command_line import QUICK

pytestmark = pytest.mark.slow

SETTINGS = [*QUICK, "training.epochs=1", 'export.targets=["packed"]']


def run(storage, run_id, budget, *changes):
    config = raysearch.load_config(assignments=[*SETTINGS, *changes])
    return raysearch.run(toy_task.make_task(), budget, storage, config=config, run_id=run_id, workers=0)


def test_uniform_widths_and_earlier_forms_are_measured_on_the_same_samples(tmp_path):
    result = run(tmp_path, "trained", "avg_bits<=3.5")
    assert list(result.baselines) == ["uniform 3", "rounded", "before training"]
    store = resolve_run("trained", tmp_path)
    assert store.load(codecs.RESULT).baselines == result.baselines
    setup, ranges = store.load(codecs.SETUP), load_ranges(store)
    task = toy_task.make_task()
    batch = task.validation.tensors
    best = store.load(codecs.SEARCH).best.assignment
    for name, assignment in [("rounded", best), ("uniform 3", BitAssignment.uniform(setup, 3))]:
        model = private_copy(task.model)
        create_controller(model, setup, ranges, assignment)
        with torch.no_grad():
            loss = task.loss(model.eval()(batch[0]), batch)
        assert result.baselines[name]["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert "uniform 3" in store.load(codecs.REPORT)


def test_a_uniform_answer_is_called_one(tmp_path):
    result = run(tmp_path, "uniform", "avg_bits<=2")
    assert "the answer is uniform 2: nothing mixed within the budget measured better" in result.notes


def test_without_baselines_nothing_more_is_measured(tmp_path):
    changes = ["validation.baselines=false", "training.epochs=0", "rounding.refine=[]"]
    assert run(tmp_path, "alone", "avg_bits<=3.5", *changes).baselines == {}
