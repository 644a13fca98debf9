import json

import numpy as np
import pytest

from raysearch.artifacts import RunStore, codecs, new_run_id, resolve_run, valid_run_id
from raysearch.artifacts.run_record import first_difference
from raysearch.artifacts.seals import Seals
from raysearch.errors import StorageError
from raysearch.records import (
    EpochMetrics,
    Finalist,
    Finalists,
    Granularity,
    LeastCost,
    QuantizerRange,
    RangeTable,
    RunStatus,
)
from raysearch.records.refinement import Candidate, Refinement
from raysearch.records.rounding import RoundedWeight, RoundingTable
from raysearch.records.scheme import Scheme
from tests.support.run_records import make_fine_tune, make_result, make_search, make_sensitivity, make_setup

CONFIG = {"task": "tasks:digits", "search": {"num_trials": 64, "seed": 0}, "budget": ["avg_bits<=4"]}

LEAST_COST = LeastCost("size", 120.0, "loss", "loss=1%", 0.01, 0.5, 0.502, 0.002)
FINALISTS = Finalists(
    (
        Finalist(3, 0.25, (EpochMetrics(-1, {"loss": 0.1 + 0.2}), EpochMetrics(0, {"loss": 1e-300}))),
        Finalist(1, 0.5, (), "the loss is nan"),
    ),
    "loss",
    1,
    50,
    "4:abc",
)


def same_search(one, other):
    def plain(trial):
        return repr(trial)  # NaN equals itself only as text

    return (
        plain(one.best) == plain(other.best)
        and [*map(plain, one.trials)] == [*map(plain, other.trials)]
        and [*map(plain, one.front)] == [*map(plain, other.front)]
        and (one.lower_bound, dict(one.reasons)) == (other.lower_bound, dict(other.reasons))
    )


def test_every_record_comes_back_equal(store):
    setup = make_setup(4)
    search = make_search(setup, 20)
    table = make_sensitivity(setup)
    ranges = RangeTable(
        {("a.weight", 4): QuantizerRange(np.array([0.1, 3.0], "f4"), np.zeros(2, "i4"), True)},
    )
    codes = np.array([[7, -8]], "i1")
    weight = RoundedWeight(
        codes, np.ones(1, "f4"), np.zeros(1, "i4"), True, Granularity.per_channel(0), 2.0, 1.0, "gptq"
    )
    rounding = RoundingTable({("a.weight", Scheme(4)): weight})
    refined = QuantizerRange(np.ones(1, "f4"), np.zeros(1, "i4"), True, codes)
    best = Candidate("tuned", {("a.weight", Scheme(4)): refined}, {"norm.bias": np.ones(2, "f4")})
    refinement = Refinement(best, {"plain": 0.2, "tuned": 0.1}, {"plain": 0.0, "tuned": 0.01}, 64)
    status = RunStatus("run-1", "running", "search", 3, 64, {"calibration": 1.5}, 1.7e9)
    metrics = {"float": {"accuracy": 0.9}, "quantized": {"accuracy": 0.8}}
    result = make_result(setup, search)

    assert not any(store.has(record) for record in codecs.RECORDS)
    store.save(codecs.SETUP, setup)
    store.save(codecs.RANGES, ranges)
    store.save(codecs.ROUNDING, rounding)
    store.save(codecs.SENSITIVITY, table)
    store.save(codecs.SEARCH, search)
    store.save(codecs.FINALISTS, FINALISTS)
    store.save(codecs.REFINEMENT, refinement)
    store.save(codecs.LEAST_COST, LEAST_COST)
    store.save(codecs.FINE_TUNE, make_fine_tune())
    store.save(codecs.METRICS, metrics)
    store.save(codecs.STATUS, status)
    store.save(codecs.REPORT, "<p>ü</p>")
    store.save(codecs.RESULT, result)

    again = resolve_run("run-1", store.storage.local_path().parent)
    assert again.load(codecs.SETUP) == setup
    assert again.load(codecs.RANGES)["a.weight", 4].scale.tobytes() == ranges["a.weight", 4].scale.tobytes()
    assert again.load(codecs.ROUNDING).digest() == rounding.digest()
    assert again.load(codecs.FINALISTS) == FINALISTS
    assert again.load(codecs.REFINEMENT).digest() == refinement.digest()
    read = again.load(codecs.SENSITIVITY)
    assert (read.traces, read.fingerprint) == (table.traces, table.fingerprint)
    # As text: from Python 3.13 on a record with a NaN equals no other.
    assert repr(read.effects) == repr(table.effects)
    assert read.gram.tobytes() == table.gram.tobytes()
    assert same_search(again.load(codecs.SEARCH), search)
    assert again.load(codecs.LEAST_COST) == LEAST_COST
    assert again.load(codecs.REPORT) == "<p>ü</p>"
    assert again.load(codecs.FINE_TUNE) == make_fine_tune()
    assert again.load(codecs.METRICS) == metrics
    assert again.load(codecs.STATUS) == status
    assert again.load(codecs.RESULT) == result
    missing = [record.files for record in codecs.RECORDS if not again.has(record)]
    assert missing == [codecs.REUSED.files, codecs.MANIFEST.files]


def test_files_have_the_names_of_the_layout(done):
    assert set(done.storage.list()) == {
        "run.json", "seals.json", "status.json", "setup.json", "sensitivity.parquet", "traces.parquet",
        "responses.arrow", "trials.parquet", "front.parquet", "best.json", "finetune.json", "result.json",
        "checkpoints/best.safetensors", "model/manifest.json", "model/model.safetensors", "model/config.json",
        "model/onnx/model.onnx",
    }  # fmt: skip
    assert done.load_checkpoint("best.safetensors") == b"state"
    assert len(done.load(codecs.MANIFEST).files) == 3
    assert json.loads(done.storage.read_bytes("run.json"))["schema_version"] == 1


def test_an_existing_run_is_not_overwritten(store):
    with pytest.raises(StorageError, match=r"'run-1' exists already.*--resume.*--run-id"):
        store.create(CONFIG)


def test_a_foreign_folder_is_neither_created_into_nor_opened(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("x")
    store = RunStore(tmp_path, "thesis")
    with pytest.raises(StorageError, match=r"is no run: it has no run.json, but holds 'chapter.txt'"):
        store.create(CONFIG)
    with pytest.raises(StorageError, match="it is no run"):
        store.open()


def test_an_empty_folder_may_become_a_run(tmp_path):
    (tmp_path / "run-1").mkdir()
    RunStore(tmp_path, "run-1").create(CONFIG)
    assert RunStore(tmp_path, "run-1").open()["config"] == CONFIG


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"there is no run 'nope'.*does not exist"):
        RunStore(tmp_path, "nope").open()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema_version": 2, "config": {}}', "schema version 2; this raysearch reads up to 1"),
        ('{"name": "other"}', "not written by raysearch"),
        ('{"schema_ver', "is damaged"),
        ("[1]", "holds no JSON object"),
    ],
)
def test_a_run_json_that_cannot_be_used_is_refused(tmp_path, content, message):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/run.json").write_text(content)
    with pytest.raises(StorageError, match=message):
        RunStore(tmp_path, "a").open()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"search": {"num_trials": 32, "seed": 0}}, "search.num_trials is 64 in the run and 32 now"),
        ({"search": {"seed": 0}}, "search.num_trials is 64 in the run and not set now"),
        ({"new": {"a": None}}, r'new is not set in the run and {"a": null} now'),
        ({"budget": ["avg_bits<=3"]}, r'budget.0 is "avg_bits<=4" in the run and "avg_bits<=3" now'),
        ({"budget": []}, r'budget is \["avg_bits<=4"\] in the run and \[\] now'),
    ],
)
def test_the_first_field_that_differs_is_named(store, change, message):
    store.check_same(CONFIG)
    with pytest.raises(StorageError, match=message):
        store.check_same({**CONFIG, **change})


def test_fingerprints_and_ignored_fields(store):
    store.check_same({**CONFIG, "search": {"num_trials": 1, "seed": 0}}, ignore=["search.num_trials"])
    store.check_same({**CONFIG, "search": {}}, {"model": "abc"}, ignore=["search"])
    with pytest.raises(StorageError, match=r'fingerprints\.model is "abc" in the run and "xyz" now'):
        store.check_same(CONFIG, {"model": "xyz"})


def test_comparison_sees_through_json():
    assert first_difference({"a": [1, 2], "b": float("nan")}, {"b": float("nan"), "a": (1, 2)}) is None
    assert first_difference({"a": 1}, {"a": True}) == "a is 1 in the run and true now"
    assert first_difference({"ab": 1}, {"ab": 2}, ignore=["a"]) is not None


def test_tables_of_two_measurements_are_not_mixed(store):
    other = RunStore(store.storage.local_path().parent, "run-2")
    store.save(codecs.SENSITIVITY, make_sensitivity(make_setup(3)))
    other.save(codecs.SENSITIVITY, make_sensitivity(make_setup(4)))
    mixed = other.storage.read_bytes("responses.arrow")
    Seals(store.storage).announce({"responses.arrow": mixed})
    store.storage.write_bytes("responses.arrow", mixed)
    with pytest.raises(StorageError, match="belong to different measurements"):
        store.load(codecs.SENSITIVITY)


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("responses.arrow", codecs.SENSITIVITY),
        ("sensitivity.parquet", codecs.SENSITIVITY),
        ("trials.parquet", codecs.SEARCH),
        ("result.json", codecs.RESULT),
    ],
)
def test_a_cut_off_record_is_named(done, name, record):
    data = done.storage.read_bytes(name)
    done.storage.write_bytes(name, data[: len(data) // 2])
    with pytest.raises(StorageError, match=rf"{name} is damaged"):
        done.load(record)


def test_run_ids():
    made = {new_run_id() for _ in range(20)}
    assert len(made) > 10
    assert all(valid_run_id(run_id) == run_id for run_id in made)
    for bad in ("", ".", "..", "a/b", "a b", "-x", ".hidden", "ü", "a" * 129, "a\n"):
        with pytest.raises(StorageError, match="is no run id"):
            valid_run_id(bad)


def test_a_run_is_found_by_id_path_or_uri(store, monkeypatch):
    folder = store.storage.local_path()
    for run, storage in [
        ("run-1", folder.parent),
        (folder, None),
        (str(folder) + "/", "ignored"),
        (f"file://{folder}", None),
    ]:
        assert resolve_run(run, storage).storage.uri == store.storage.uri
    monkeypatch.chdir(folder.parent)
    assert resolve_run("run-1").storage.uri == store.storage.uri
    assert resolve_run("./run-1").storage.uri == store.storage.uri
    with pytest.raises(StorageError, match=r"'run-9' is a run id, and no storage"):
        resolve_run("run-9")


def test_a_uri_keeps_its_options():
    from raysearch.artifacts.run_id import split_run

    assert split_run("s3://b/runs/r1/?region=x", None) == ("s3://b/runs?region=x", "r1")


def test_an_older_export_leaves_nothing_behind(tmp_path):
    store = RunStore(tmp_path / "runs", "r")
    store.create({})
    for names in (("a.bin", "old.onnx", "manifest.json"), ("a.bin", "manifest.json")):
        folder = tmp_path / names[1]
        folder.mkdir()
        for name in names:
            (folder / name).write_text(name)
        store.save_model(folder)
    assert store.storage.list("model") == ("model/a.bin", "model/manifest.json")
