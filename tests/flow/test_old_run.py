"""A run folder of an earlier raysearch (0811c7b) still answers everything that is asked of a saved run."""

import json
import shutil

import pytest
import torch

import raysearch
from raysearch.artifacts import codecs, hash_file, resolve_run
from raysearch.records import BitAssignment
from tests.support.old_run_task import RUN, make_task

pytestmark = pytest.mark.slow

GROUPS = (
    "conv.weight", "left.weight", "right.weight", "depth.weight", "hidden.weight", "head.weight",
    "conv.input", "left.input", "add0.input0", "depth.input", "hidden.input", "head.input",
)  # fmt: skip
RESOLVED = [
    (("avg_bits<=3",), "response", "422444888888", 0.07970380216559197),
    (("avg_bits<=4", "bops<=30%"), "response", "444444448888", 0.016918069535632532),
    (("avg_bits<=3",), "hawq", "422444888888", 0.25636174002762957),
    (("act_bits<=6", "avg_bits<=5"), "response", "844448844888", 0.01193813626090759),
]
"""Budgets, surrogate → widths and prediction: what the raysearch that wrote the folder answered."""


LATER = (
    codecs.ROUNDING,
    codecs.FINALISTS,
    codecs.REFINEMENT,
    codecs.LEAST_COST,
    codecs.REUSED,
    codecs.REPORT,
)
"""Records that this run has none of."""


@pytest.fixture
def old_run(tmp_path):
    return shutil.copytree(RUN, tmp_path / "old_run")


def test_every_record_is_read(old_run):
    store = resolve_run(old_run)
    missing = [record.files for record in codecs.RECORDS if not store.has(record)]
    assert missing == [record.files for record in LATER]
    records = {record: store.load(record) for record in codecs.RECORDS if store.has(record)}
    assert len(records[codecs.SEARCH].trials) == 20
    assert len(store.load(codecs.TRIALS)) == 20
    assert store.load(codecs.RANGES)["conv.weight", 4].scale.shape == (8,)


@pytest.mark.parametrize(
    "record",
    [record for record in codecs.RECORDS if record not in LATER],
    ids=lambda record: record.files[-1],
)
def test_a_record_that_is_written_again_holds_the_same(old_run, record):
    store = resolve_run(old_run)
    first = [store.storage.read_bytes(name) for name in record.files]
    store.save(record, store.load(record))
    for name, data in zip(record.files, first, strict=True):
        if name.endswith(".json"):
            assert json.loads(store.storage.read_bytes(name)) == json.loads(data), name
        elif name.endswith(".safetensors"):
            assert store.storage.read_bytes(name) == data, name


@pytest.mark.parametrize(("budgets", "surrogate", "widths", "predicted"), RESOLVED)
def test_it_resolves_to_the_same_assignments(old_run, budgets, surrogate, widths, predicted):
    best = raysearch.resolve(old_run, budgets, surrogate=surrogate)
    assert "".join(str(best.assignment.bits[group]) for group in GROUPS) == widths
    assert best.value == pytest.approx(predicted, rel=1e-12)


def test_its_candidates_are_measured_again(old_run):
    trials = raysearch.resolve_measured(old_run, ("act_bits<=6", "avg_bits<=5"), count=3, task=make_task())
    assert [trial.source for trial in trials] == ["single-loss", "neighbour", "response"]
    assert "".join(str(trials[0].assignment.bits[group]) for group in GROUPS) == "444484844888"
    # Measured in float32, whose last digits differ between machines.
    assert trials[0].value == pytest.approx(0.010596421522795458, rel=1e-3)


def test_what_it_chose_is_read_and_shown(old_run):
    setup, table, chosen = raysearch.load_sensitivity(old_run)
    assert isinstance(chosen, BitAssignment)
    assert set(chosen.bits) == set(setup.groups)
    assert len(table.effects) == 29
    assert raysearch.status(old_run).state == "done"
    path = raysearch.report(old_run)
    page = (old_run / "report.html").read_text()
    assert path == str(old_run / "report.html")
    assert page.startswith("<!")
    assert all(group in page for group in setup.groups)


def test_its_model_is_verified_loaded_and_exported_again_with_the_same_weights(old_run):
    check = raysearch.verify(old_run / "model")
    assert {result.target for result in check.checks} == {"packed", "onnx"}
    task = make_task()
    before = raysearch.load_model(old_run / "model")(task.validation.tensors[0])
    weights = hash_file(old_run / "model" / "model.safetensors")
    manifest = raysearch.export_run(old_run, ["packed"], task=task)
    assert {file.path: file.sha256 for file in manifest.files}["model.safetensors"] == weights
    # An export adds to the targets that are there, and removes none.
    assert "model.onnx" in {file.path for file in manifest.files}
    after = raysearch.load_model(old_run / "model")(task.validation.tensors[0])
    assert torch.equal(after, before)
    assert raysearch.verify(old_run / "model").checks[0].max_abs_difference == 0.0


def test_it_is_retrieved(old_run, tmp_path):
    target = raysearch.retrieve(old_run, None, tmp_path / "copy")
    assert hash_file(target / "model" / "model.onnx") == hash_file(RUN / "model" / "model.onnx")
